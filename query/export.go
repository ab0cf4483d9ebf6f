package query

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
)

// exportBytes is how much of an export is gathered before it is sent.
const exportBytes = 128 << 10

// export sends a line for each row of a window, several with each call of send.
func (s *store) export(ctx context.Context, q *search, timeout time.Duration, send func([]byte) error) error {
	out := make([]byte, 0, exportBytes+4096)
	err := s.exportRows(ctx, q, timeout, func(r row) error {
		out = append(r.appendJSON(out), '\n')
		if len(out) < exportBytes {
			return nil
		}
		err := send(out)
		out = out[:0]
		return err
	})
	if err != nil {
		return err
	}
	return send(out)
}

// getExport answers GET /logs/export. If something goes wrong after the first line, the connection is cut, so that no client
// takes a part for the whole. HTTP/1.0 is refused, because its answers end where the connection ends.
func (s *server) getExport(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, exportParameters, time.Now())
	if err != nil {
		return err
	}
	if !r.ProtoAtLeast(1, 1) {
		return &failure{http.StatusHTTPVersionNotSupported, "an export takes HTTP/1.1: over HTTP/1.0 one that is cut off looks whole (a proxy may have to be told, as nginx by proxy_http_version 1.1)"}
	}
	if r.URL.Query().Get("order") == "" {
		q.ascending = true
	}
	select {
	case s.exports <- struct{}{}:
		defer func() { <-s.exports }()
	default:
		return tooMany(strconv.Itoa(cap(s.exports)) + " exports are under way, the most at once")
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	s.working.Go(func() {
		select {
		case <-keyOf(r).Gone():
			cancel()
		case <-ctx.Done():
		}
	})
	out := newExportAnswer(w, r)
	err = s.store.export(ctx, q, s.exportTimeout, out.write)
	if err == nil {
		err = out.finish()
	}
	switch {
	case err == nil, errors.Is(err, errHead):
		return nil
	case out.hasBegun:
		if ctx.Err() == nil {
			s.log.Warn("an export was cut off", "error", err)
		}
		panic(http.ErrAbortHandler)
	}
	for _, name := range []string{"Content-Disposition", "Content-Type"} {
		w.Header().Del(name)
	}
	switch {
	case r.Context().Err() != nil:
	case s.stopping.Err() != nil:
		return &failure{http.StatusServiceUnavailable, "the service stops"}
	case ctx.Err() != nil:
		w.Header().Set("WWW-Authenticate", "Bearer")
		return &failure{http.StatusUnauthorized, "the API key was revoked"}
	case s.failureOf(err).status == http.StatusGatewayTimeout:
		return &failure{http.StatusGatewayTimeout, "the export took longer than " + s.exportTimeout.String() + "; narrow the time range"}
	}
	return err
}

// exportAnswer sends an export, compressed if the client takes that.
type exportAnswer struct {
	w         http.ResponseWriter
	control   *http.ResponseController
	isHead    bool
	takesGzip bool
	hasBegun  bool         // the header is sent
	zip       *gzip.Writer // nil: nothing is compressed
}

// newExportAnswer returns the answer to a request, which has no deadline any more.
func newExportAnswer(w http.ResponseWriter, r *http.Request) *exportAnswer {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Content-Disposition", `attachment; filename="logs.ndjson"`)
	w.Header().Add("Vary", "Accept-Encoding")
	return &exportAnswer{w: w, control: control, isHead: r.Method == http.MethodHead, takesGzip: takesGzip(r.Header.Get("Accept-Encoding"))}
}

// write sends a piece. The client may take writeTime to receive it. If only the header was asked for, it returns errHead.
func (a *exportAnswer) write(b []byte) error {
	_ = a.control.SetWriteDeadline(time.Now().Add(writeTime))
	if !a.hasBegun {
		a.hasBegun = true
		if a.takesGzip {
			a.w.Header().Set("Content-Encoding", "gzip")
			a.zip, _ = gzip.NewWriterLevel(a.w, gzip.BestSpeed) // the level is one
		}
		a.w.WriteHeader(http.StatusOK)
	}
	var to io.Writer = a.w
	switch {
	case a.isHead:
		return errHead
	case a.zip != nil:
		to = a.zip
	}
	_, err := to.Write(b)
	return err
}

// finish sends what compression holds back.
func (a *exportAnswer) finish() error {
	if a.zip == nil {
		return nil
	}
	return a.zip.Close()
}

// errHead ends an export of which only the header was asked for.
var errHead = errors.New("only the header was asked for")

// takesGzip reports whether a client's Accept-Encoding admits gzip: by its name, or else by "*".
func takesGzip(accept string) (takes bool) {
	for part := range strings.SplitSeq(accept, ",") {
		name, quality, _ := strings.Cut(part, ";")
		name = strings.TrimSpace(name)
		isGzip := strings.EqualFold(name, "gzip")
		if !isGzip && name != "*" {
			continue
		}
		q, found := strings.CutPrefix(strings.TrimSpace(quality), "q=")
		weight, err := strconv.ParseFloat(q, 64)
		takes = !found || err == nil && weight > 0
		if isGzip {
			return takes
		}
	}
	return takes
}
