package front

import (
	"github.com/valyala/fasthttp"

	"millrace/internal/direct"
)

const (
	// maxPost is how long the body of a prepared answer may be. It has to fit into fasthttp's buffer of 4 KiB with its
	// header, so that the first Write has all of it.
	maxPost = 1 << 10
)

// Budget is what a request's bytes are given back to.
type Budget interface{ Release(bytes int64) }

// Hold makes the prepared answer wait for the call of the function that it returns, and the n bytes of b, too, which the
// request holds. If that tells of a confirm the answer is written at once, and then the request's goroutine goes on, which
// by then often finds the next request there. So what it counts is counted just after the client has its answer; the bytes
// are given back before.
func (c *Conn) Hold(b Budget, n int64) (settled func(confirmed bool)) {
	c.of, c.held = b, n
	return c.settled
}

// settle gives back what the request holds, and writes the prepared answer if its frame was confirmed.
func (c *Conn) settle(confirmed bool) {
	c.of.Release(c.held)
	if confirmed {
		c.post()
	}
}

// Prepare makes the answer in ctx, and keeps it as fasthttp will write it. It says false, and makes none, where fasthttp
// could write something else, or something before it.
func (c *Conn) Prepare(ctx *fasthttp.RequestCtx, status int, json []byte) bool {
	request := &ctx.Request.Header
	if _, ok := c.Conn.(*direct.Conn); !ok || !c.clear || !request.IsHTTP11() || request.ConnectionClose() || len(json) > maxPost {
		return false
	}
	ctx.SetStatusCode(status)
	ctx.SetContentType("application/json")
	ctx.Response.Header.SetContentLength(len(json))
	c.answer = ctx.Response.Header.AppendBytes(c.answer[:0])
	c.head = len(c.answer) - len("\r\n\r\n")
	c.answer = append(c.answer, json...)
	ctx.Response.SetBodyRaw(c.answer[len(c.answer)-len(json):])
	return true
}

// post writes the prepared answer as far as the socket takes it at once. Write does the rest.
func (c *Conn) post() {
	if !c.listener.closing.Load() {
		c.posted = c.Conn.(*direct.Conn).Try(c.answer)
	}
}

// StopEarly leaves all answers to fasthttp, which is about to add that the connection closes.
func (l *Listener) StopEarly() { l.closing.Store(true) }
