"""What an agent declares: names, handlers, schedules and limits, without a store or a socket."""
