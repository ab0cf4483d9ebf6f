package front

import "github.com/valyala/fasthttp"

// An early answer is written by the goroutine that settles the frame, before the request's goroutine is woken. The request's
// handler makes it with Prepare, and arranges for the function that Hold returns to be called at the confirm. When the handler
// returns, fasthttp writes the same bytes, and Conn.Write leaves out those that have been written.

// maxPrepared is the most bytes that the body of a prepared answer may have. With its header it must fit into fasthttp's buffer
// of 4 KiB, so that the first Write has all of it.
const maxPrepared = 1 << 10

// Prepare sets body as the body of ctx's answer, whose header must be complete, and keeps the answer as fasthttp will write it.
// It reports false, and prepares nothing, if fasthttp might write other bytes, or other bytes first.
func (c *Conn) Prepare(ctx *fasthttp.RequestCtx, body []byte) bool {
	request := &ctx.Request.Header
	if c.socket == nil || !c.isClear || !request.IsHTTP11() || request.ConnectionClose() || len(body) > maxPrepared || ctx.Response.StatusCode() == fasthttp.StatusNoContent {
		return false
	}
	ctx.Response.Header.SetContentLength(len(body))
	c.answer = ctx.Response.Header.AppendBytes(c.answer[:0])
	c.headBytes = len(c.answer) - len("\r\n\r\n")
	c.answer = append(c.answer, body...)
	ctx.Response.SetBodyRaw(c.answer[len(c.answer)-len(body):])
	return true
}

// Budget takes back the bytes that a request has held.
type Budget interface{ Release(bytes int64) }

// Hold returns the function to call at the end of the request's wait. That function gives n bytes back to b, and writes the
// prepared answer if the records were confirmed. After it the request's goroutine may go on, which often finds that the next
// request has come. So the bytes are given back before the client has its answer, and the request is counted just after.
//
// Any goroutine may call the function, once, before the handler returns. It does not block.
func (c *Conn) Hold(b Budget, n int64) (settled func(confirmed bool)) {
	c.budget, c.heldBytes = b, n
	return c.onSettled
}

// settle is the function that Hold returns.
func (c *Conn) settle(confirmed bool) {
	c.budget.Release(c.heldBytes)
	if confirmed {
		c.writeEarly()
	}
}

// writeEarly writes the prepared answer as far as the socket takes it at once. Write does the rest.
func (c *Conn) writeEarly() {
	if !c.listener.stopping.Load() {
		c.earlyBytes = c.socket.Try(c.answer)
	}
}

// StopEarly leaves all further answers to fasthttp. It is for the shutdown, when fasthttp adds Connection: close to them.
func (l *Listener) StopEarly() { l.stopping.Store(true) }
