package front

import "github.com/valyala/fasthttp"

// An early answer is written by whoever learns of the confirm, before the request's goroutine is woken. The request's handler
// makes it with Prepare, and has the function that Hold returns called at the confirm. Then it returns, and fasthttp writes the
// same bytes: Conn.Write leaves out those that have been written.

// maxPrepared is how long the body of a prepared answer may be. It has to fit into fasthttp's buffer of 4 KiB with its
// header, so that the first Write has all of it.
const maxPrepared = 1 << 10

// Prepare gives the answer whose header ctx has its body, and keeps it as fasthttp will write it. It reports false, and prepares nothing, if fasthttp
// might write other bytes, or other bytes first.
func (c *Conn) Prepare(ctx *fasthttp.RequestCtx, body []byte) bool {
	request := &ctx.Request.Header
	if c.socket == nil || !c.clear || !request.IsHTTP11() || request.ConnectionClose() || len(body) > maxPrepared || ctx.Response.StatusCode() == fasthttp.StatusNoContent {
		return false
	}
	ctx.Response.Header.SetContentLength(len(body))
	c.answer = ctx.Response.Header.AppendBytes(c.answer[:0])
	c.head = len(c.answer) - len("\r\n\r\n")
	c.answer = append(c.answer, body...)
	ctx.Response.SetBodyRaw(c.answer[len(c.answer)-len(body):])
	return true
}

// Budget is what a request's bytes are given back to.
type Budget interface{ Release(bytes int64) }

// Hold returns a function for the end of the request's wait. It gives back n bytes to b. If the records were confirmed it writes
// the prepared answer. Then the request's goroutine may go on, which by then often finds the next request there. So what the
// request counts is counted just after the client has its answer, and its bytes are given back before.
//
// The function may be called by any goroutine, once, before the handler returns. It does not block.
func (c *Conn) Hold(b Budget, n int64) (settled func(confirmed bool)) {
	c.budget, c.held = b, n
	return c.settled
}

func (c *Conn) settle(confirmed bool) {
	c.budget.Release(c.held)
	if confirmed {
		c.writeEarly()
	}
}

// writeEarly writes the prepared answer as far as the socket takes it at once. Write does the rest.
func (c *Conn) writeEarly() {
	if !c.listener.stopping.Load() {
		c.early = c.socket.Try(c.answer)
	}
}

// StopEarly leaves all answers to fasthttp, which is about to add that the connection closes.
func (l *Listener) StopEarly() { l.stopping.Store(true) }
