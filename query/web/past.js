// The reader's searches of before, for the query box. They are kept in this browser alone, beside the address: no request has them, and nothing of the page
// depends on them.

const key = 'millrace.searches';
const most = 50; // searches
const longest = 500; // characters of one

// list returns the searches, the latest first. Other tabs add to them, so they are read anew each time.
export function list() {
  try {
    const kept = JSON.parse(localStorage.getItem(key) ?? '[]');
    return Array.isArray(kept) ? kept.filter((query) => typeof query === 'string' && query) : [];
  } catch {
    return []; // storage is off, or something else wrote there
  }
}

function keep(queries) {
  try {
    if (queries.length) localStorage.setItem(key, JSON.stringify(queries));
    else localStorage.removeItem(key);
  } catch { /* storage is off or full: a convenience less */ }
}

const others = (query) => list().filter((other) => other !== query);

// add puts a search that was answered in front.
export function add(query) {
  if (query && query.length <= longest) keep([query, ...others(query)].slice(0, most));
}

export const remove = (query) => keep(others(query));
export const clear = () => keep([]);
