// Not a module: it runs before the first paint, so that a chosen theme does not flash in the other's colours.
try {
  const theme = localStorage.getItem('millrace.theme');
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* storage is off: the system's theme */ }
