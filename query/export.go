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
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Content-Disposition", `attachment; filename="logs.ndjson"`)
	w.Header().Add("Vary", "Accept-Encoding")
	var (
		to     io.Writer = w
		zip    *gzip.Writer
		begun  bool
		zipped = takesGzip(r.Header.Get("Accept-Encoding"))
	)
	err = s.store.export(ctx, q, s.exportTimeout, func(b []byte) error {
		_ = control.SetWriteDeadline(time.Now().Add(writeTime)) // for each piece
		if !begun {
			begun = true
			if zipped {
				w.Header().Set("Content-Encoding", "gzip")
				zip, _ = gzip.NewWriterLevel(w, gzip.BestSpeed) // the level is one
				to = zip
			}
			w.WriteHeader(http.StatusOK)
		}
		if r.Method == http.MethodHead {
			return errHead
		}
		_, err := to.Write(b)
		return err
	})
	switch {
	case errors.Is(err, errHead):
		return nil
	case err == nil && zip != nil:
		err = zip.Close()
	}
	if err == nil {
		return nil
	}
	if !begun {
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
	if ctx.Err() == nil {
		s.log.Warn("an export was cut off", "error", err)
	}
	panic(http.ErrAbortHandler)
}

// errHead ends an export of which only the header was asked for.
var errHead = errors.New("only the header was asked for")

// takesGzip reports whether a client's Accept-Encoding admits gzip.
func takesGzip(accept string) bool {
	for part := range strings.SplitSeq(accept, ",") {
		name, quality, _ := strings.Cut(part, ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") {
			q, found := strings.CutPrefix(strings.TrimSpace(quality), "q=")
			weight, err := strconv.ParseFloat(q, 64)
			return !found || err == nil && weight > 0
		}
	}
	return false
}
