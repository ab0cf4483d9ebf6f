package api

import (
	"github.com/valyala/fasthttp"

	"millrace/internal/direct"
)

const (
	// perPost is how many answers one goroutine writes. Some hundred requests wait for one confirm. Were each woken to
	// write its own answer, the processor would go through as many stacks and much of fasthttp between two answers, and the
	// clients would have theirs later by that time. In groups this small the other processors share the work.
	perPost = 16

	// maxPost is how long the body of a prepared answer may be. It has to fit into fasthttp's buffer of 4 KiB with its
	// header, so that the first Write has all of it.
	maxPost = 1 << 10
)

// post is a group of prepared answers. They are written as soon as the frame that their requests wait for is confirmed,
// and then the requests' goroutines go on, which by then often find the next requests there. So what they count is
// counted just after the client has its answer; the bytes that they hold are given back before.
type post struct {
	answers []prepared
	done    chan struct{} // closed when they are written, or the frame failed
}

// prepared is an answer, and the bytes that its request holds until then.
type prepared struct {
	conn *trackedConn
	held reservation
}

// end gives back what the requests hold, and has the answers written if their frame was confirmed.
func (p *post) end(confirmed bool) {
	for _, a := range p.answers {
		a.held.release()
		if confirmed {
			a.conn.post()
		}
	}
	close(p.done)
}

// enlist has a's answer written when the frame is confirmed. The channel is closed after that, or when it turns out that
// the frame is not.
func (f *pending) enlist(a prepared) <-chan struct{} {
	f.postMu.Lock()
	defer f.postMu.Unlock()
	if f.settled.Load() {
		a.held.release()
		return f.done
	}
	last := len(f.posts) - 1
	if last < 0 || len(f.posts[last].answers) == perPost {
		f.posts = append(f.posts, &post{make([]prepared, 0, perPost), make(chan struct{})})
		last++
	}
	p := f.posts[last]
	p.answers = append(p.answers, a)
	return p.done
}

// prepare makes the answer in ctx, and keeps it as fasthttp will write it. It says false, and makes none, where fasthttp
// could write something else, or something before it.
func (c *trackedConn) prepare(ctx *fasthttp.RequestCtx, status int, json []byte) bool {
	request := &ctx.Request.Header
	if _, ok := c.Conn.(*direct.Conn); !ok || !c.clear || !request.IsHTTP11() || request.ConnectionClose() || len(json) > maxPost {
		return false
	}
	beginJSON(ctx, status)
	ctx.Response.Header.SetContentLength(len(json))
	c.answer = ctx.Response.Header.AppendBytes(c.answer[:0])
	c.head = len(c.answer) - len("\r\n\r\n")
	c.answer = append(c.answer, json...)
	ctx.Response.SetBodyRaw(c.answer[len(c.answer)-len(json):])
	return true
}

// post writes the prepared answer as far as the socket takes it at once. Write does the rest.
func (c *trackedConn) post() {
	if !c.listener.closing.Load() {
		c.posted = c.Conn.(*direct.Conn).Try(c.answer)
	}
}

// stopPosts leaves all answers to fasthttp, which is about to add that the connection closes.
func (l *listener) stopPosts() { l.closing.Store(true) }
