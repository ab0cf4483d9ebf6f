// Package query is the read side of Millrace: it searches the logs in PostgreSQL and answers in JSON.
//
// What it promises:
//
//   - Every read is one READ ONLY transaction with a statement timeout, and is cancelled when its client goes.
//     Only an answer that others may share and the cache keeps is finished all the same, within the timeout.
//
//   - A page never repeats a row or leaves one out that was there when the first page was read, also among rows
//     of the same millisecond: pages are cut by (inserted_at, id), and the cursor holds the window in
//     milliseconds.
//
//   - Memory is bounded: so many requests at once, so many bytes a page (limits in server.go and rows.go).
//     Beyond the bound a request gets 429 at once.
//
//   - The cache is never wrong and never needed. Only answers about a closed window are kept, under a key that
//     holds how many times rows appeared or vanished in the window's hours afterwards; a Redis that is absent,
//     slow or dying costs time, and no answer.
//
//   - What comes from outside is refused with 400, the parameter's name, what it got and what it takes; in q
//     also where.
//
//   - The tail gives every follower each row that becomes visible once, however late it commits, or tells how many
//     it was too slow for. A slow follower slows nobody.
//
//   - An export is the whole window, or its connection is cut.
//
// The way of a request is the order of the files: server.go with cors.go (who may ask), params.go with times.go and
// cursor.go (what is asked; the package language reads q), cache.go, then the endpoint: logs.go, histogram.go with buckets.go,
// fields.go, export.go, follow.go. Their rows come by rows.go and store.go. The package tail gives rows to followers.
// failure.go tells what went wrong.
//
// Goroutines: Run starts the one that watches the database, the one that watches the keys and the tail's reader,
// cache.share one for each request that waits for a shared answer, and export one for its key. Run waits for all of
// them, after the last request has been answered.
package query
