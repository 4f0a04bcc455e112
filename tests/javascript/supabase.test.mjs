// supabase-js against the gateway, as it would be against a project. Run by tests/local/gateway/test_javascript.py.

import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { createClient } from '@supabase/supabase-js'
import WebSocket from 'ws'

const { URL, SERVICE_KEY, PUBLISHABLE_KEY, USER_TOKEN } = process.env
const clients = []

function client(key, options = {}) {
  const made = createClient(URL, key, {
    auth: { persistSession: false, autoRefreshToken: false },
    realtime: { transport: WebSocket },
    ...options,
  })
  clients.push(made)
  return made
}

after(() => Promise.all(clients.map((each) => each.removeAllChannels())))

// Events in the order of their coming: `next()` waits for one.
function mailbox() {
  const letters = []
  const waiting = []
  return {
    put: (letter) => (waiting.length ? waiting.shift()(letter) : letters.push(letter)),
    next: () => (letters.length ? Promise.resolve(letters.shift()) : new Promise((take) => waiting.push(take))),
  }
}

// Resolves when the channel is joined and, where it listens to the database, when that is heard.
function joined(channel, { database = false } = {}) {
  return new Promise((resolve, reject) => {
    if (database) {
      channel.on('system', {}, ({ extension, status, message }) => {
        if (extension === 'postgres_changes') status === 'ok' ? resolve(channel) : reject(new Error(message))
      })
    }
    channel.subscribe((status, error) => {
      if (status === 'SUBSCRIBED' && !database) resolve(channel)
      if (status === 'CHANNEL_ERROR' || status === 'TIMED_OUT') reject(error ?? new Error(status))
    })
  })
}

const service = client(SERVICE_KEY)

test('rest', async () => {
  const { data: made, error } = await service.from('notes').insert([{ id: 1, label: 'a' }, { id: 2 }]).select('id, label')
  assert.equal(error, null)
  assert.deepEqual(made, [{ id: 1, label: 'a' }, { id: 2, label: null }])
  const { data: merged } = await service.from('notes').upsert({ id: 2, label: 'b' }).select().single()
  assert.equal(merged.label, 'b')
  const page = await service.from('notes').select('id', { count: 'exact' }).order('id', { ascending: false }).range(0, 0)
  assert.deepEqual([page.data, page.count, page.status], [[{ id: 2 }], 2, 206])
  const head = await service.from('notes').select('*', { count: 'exact', head: true }).in('label', ['a', 'c'])
  assert.deepEqual([head.data, head.count], [null, 1])
  assert.equal((await service.from('notes').select().eq('id', 9).maybeSingle()).data, null)
  assert.equal((await service.from('notes').select().single()).error.code, 'PGRST116')
  assert.deepEqual((await service.from('notes').update({ label: 'c' }).gt('id', 1).select('label')).data, [{ label: 'c' }])
  assert.equal((await service.from('notes').delete().is('label', null).not('id', 'eq', 1)).status, 204)
  assert.equal((await service.from('nothing').select()).error.code, 'PGRST205')
  assert.equal((await client(PUBLISHABLE_KEY).from('notes').select()).error.code, '42501')
})

test('rpc', async () => {
  assert.equal((await service.rpc('add', { a: 1, b: 2 })).data, 3)
  assert.equal((await service.rpc('add', { a: 1 }, { get: true })).data, 2)
  assert.equal((await service.rpc('nothing')).error.code, 'PGRST202')
})

test('what is not served says so', async () => {
  const refused = /`supabase start`/
  assert.match((await service.from('notes').select().or('id.eq.1,id.eq.2')).error.message, refused)
  assert.match((await service.from('notes').select('id, other(*)')).error.message, refused)
  assert.match((await service.auth.signInWithPassword({ email: 'a@b.c', password: 'd' })).error.message, refused)
  assert.match((await service.storage.listBuckets()).error.message, refused)
  const { error } = await service.functions.invoke('hello')
  assert.match((await error.context.json()).message, refused)
  const present = service.channel('present')
  present.on('presence', { event: 'sync' }, () => {})
  await assert.rejects(joined(present), refused)
  await service.removeChannel(present)
})

test('broadcast between clients, over HTTP and from the database', async () => {
  const heard = mailbox()
  const own = mailbox()
  const listener = client(PUBLISHABLE_KEY).channel('room')
  listener.on('broadcast', { event: '*' }, heard.put)
  await joined(listener)
  const sender = service.channel('room', { config: { broadcast: { self: true, ack: true } } })
  sender.on('broadcast', { event: 'hello' }, own.put)
  await joined(sender)
  assert.equal(await sender.send({ type: 'broadcast', event: 'hello', payload: { n: 1 } }), 'ok')
  assert.deepEqual((await own.next()).payload, { n: 1 })
  assert.deepEqual((await heard.next()).payload, { n: 1 })
  assert.deepEqual(await service.channel('room').httpSend('over http', { n: 2 }), { success: true })
  assert.deepEqual((await heard.next()).payload, { n: 2 })
  await service.rpc('tell', { topic: 'room', private: false })
  assert.equal((await heard.next()).payload.n, 3)
})

test('postgres_changes', async () => {
  const heard = mailbox()
  const channel = service.channel('changes')
  channel.on('postgres_changes', { event: '*', schema: 'public', table: 'notes', filter: 'id=gte.10' }, heard.put)
  await joined(channel, { database: true })
  await service.from('notes').insert([{ id: 3 }, { id: 10, label: 'x' }])
  await service.from('notes').update({ label: 'y' }).eq('id', 10)
  await service.from('notes').delete().eq('id', 10)
  const changes = [await heard.next(), await heard.next(), await heard.next()]
  assert.deepEqual(changes.map((change) => change.eventType), ['INSERT', 'UPDATE', 'DELETE'])
  assert.deepEqual(changes.map((change) => change.new.label), ['x', 'y', undefined])
  assert.deepEqual(changes[2].old, { id: 10 })
})

test('private channels', async () => {
  const user = client(PUBLISHABLE_KEY, { accessToken: async () => USER_TOKEN })
  await user.realtime.setAuth() // as Supabase's guide to private channels has it: the first join carries the token
  const heard = mailbox()
  const room = user.channel('room:1', { config: { private: true, broadcast: { ack: true } } })
  room.on('broadcast', { event: 'told' }, heard.put)
  await joined(room)
  await service.rpc('tell', { topic: 'room:1', private: true })
  assert.equal((await heard.next()).payload.n, 3)
  const other = user.channel('elsewhere', { config: { private: true } })
  await assert.rejects(joined(other), /You do not have permissions to read from this Channel topic: elsewhere/)
  await user.removeChannel(other)
})

test('setAuth gives a joined channel another identity', async () => {
  const user = client(PUBLISHABLE_KEY)
  const heard = mailbox()
  const channel = user.channel('mine')
  channel.on('postgres_changes', { event: 'INSERT', schema: 'public', table: 'mine' }, heard.put)
  await joined(channel, { database: true })
  const again = new Promise((resolve) => channel.on('system', {}, resolve))
  await user.realtime.setAuth(USER_TOKEN)
  await again
  const owner = JSON.parse(Buffer.from(USER_TOKEN.split('.')[1], 'base64url')).sub
  await service.from('mine').insert([{ id: 1, owner: null }, { id: 2, owner }])
  assert.equal((await heard.next()).new.id, 2)
})
