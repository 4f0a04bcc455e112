// Before anything is painted: the theme and the height of the rows that were chosen here, else the system's and full rows.
(() => {
  for (const name of ["theme", "rows"]) {
    const chosen = localStorage.getItem(name);
    if (chosen) document.documentElement.dataset[name] = chosen;
  }
})();
