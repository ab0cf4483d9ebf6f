package deploy

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"millrace/internal/e2e"
	"millrace/internal/testenv"
)

// journalProgram returns the command of one of systemd's programs that are unpacked in a folder.
func journalProgram(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd, root, err := debian("/lib/systemd/"+name, args...)
	if err != nil {
		t.Skipf("%v: make clients installs %s", err, name)
	}
	shared, err := filepath.Glob(root + "/usr/lib/*-linux-gnu*/systemd")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = []string{cmd.Env[0] + ":" + strings.Join(shared, ":")}
	return cmd
}

// cutReader is a reader that fails after so many bytes.
type cutReader struct {
	io.Reader
	left int
}

func (c *cutReader) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := c.Reader.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// TestSystemdsJournalIsStoredOnce uploads a journal by systemd-journal-upload, with a key in its URL. The first upload is cut in its middle, the answer to the second is lost: the
// program ends with an error each time, and systemd would start it again.
func TestSystemdsJournalIsStoredOnce(t *testing.T) {
	const records = 3000
	dir := t.TempDir()
	journal := filepath.Join(dir, "test.journal")
	made := journalProgram(t, "systemd-journal-remote", "--output="+journal, "-")
	var text strings.Builder
	now := time.Now()
	for n := range records {
		at := now.Add(time.Duration(n-records) * time.Millisecond).UnixMicro()
		fmt.Fprintf(&text, "__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n_BOOT_ID=6c7c6013a26343b29e964691ff25d04c\n_HOSTNAME=node1\nPRIORITY=4\nSYSLOG_IDENTIFIER=shop\n_PID=%d\nMESSAGE=line %d of %d\n", at, n+1, n+1, n, records)
		if n%10 == 0 {
			value := strings.Repeat(fmt.Sprintf("%d\n\x00\xff", n), 1000)
			text.WriteString("DATA\n" + string(binary.LittleEndian.AppendUint64(nil, uint64(len(value)))) + value + "\n")
		}
		text.WriteByte('\n')
	}
	made.Stdin = strings.NewReader(text.String())
	if out, err := made.CombinedOutput(); err != nil {
		t.Fatalf("systemd-journal-remote: %v: %s", err, out)
	}
	keysFile, secret := newKeysFile(t)
	broker, db := testenv.Broker(t, 1), testenv.Schema(t)
	addr := e2e.RunAPI(t, broker, map[string]string{"KEYS_FILE": keysFile})
	e2e.RunWorker(t, broker, slog.New(slog.DiscardHandler), map[string]string{"POSTGRES_URL": string(db), "WORKER_STREAMS": "1"})
	var requests atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := requests.Add(1)
		body := io.Reader(r.Body)
		if n == 1 {
			body = &cutReader{r.Body, 400_000}
		}
		req, err := http.NewRequest(r.Method, "http://"+addr+r.URL.RequestURI(), body)
		if err != nil {
			t.Error(err)
			return
		}
		req.Header = r.Header.Clone()
		req.Header.Del("Expect")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close() // it is short
		if n == 2 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body) // the program may be gone
	}))
	t.Cleanup(proxy.Close)
	url := strings.Replace(proxy.URL, "http://", "http://x:"+secret+"@", 1)
	for try := 1; ; try++ {
		upload := journalProgram(t, "systemd-journal-upload", "--url="+url, "--file="+journal, "--save-state="+filepath.Join(dir, "state"), "--follow=no")
		upload.Env = append(os.Environ(), upload.Env...)
		out, err := upload.CombinedOutput()
		if err == nil && try == 3 {
			break
		}
		if err == nil || try == 3 {
			t.Fatalf("try %d: %v: %s", try, err, out)
		}
	}
	conn := testenv.Connect(t, db)
	testenv.AwaitCount(t, conn, records, "SELECT count(*) FROM logs")
	for what, condition := range map[string]string{
		"are there once":       "data->'journal'->>'cursor' IN (SELECT data->'journal'->>'cursor' FROM logs GROUP BY 1 HAVING count(*) = 1)",
		"are as they were":     "data->>'message' LIKE 'line % of 3000' AND data->>'level' = 'warn' AND data->'host'->>'name' = 'node1' AND data->'service'->>'name' = 'shop' AND data->>'pid' = (1 + split_part(data->>'message', ' ', 2)::int)::text",
		"have their own times": "time < inserted_at + '1 ms' AND extract(epoch FROM now() - time) < 3600",
	} {
		var n int
		if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM logs WHERE "+condition).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n != records {
			t.Errorf("%d of %d records %s", n, records, what)
		}
	}
	var binaries int
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM logs WHERE substr(decode(data->'journal'->'DATA'->>'base64', 'base64'), 1, length(split_part(data->>'message', ' ', 2)) + 3)
		= convert_to(split_part(data->>'message', ' ', 2), 'UTF8') || '\x0a00ff'::bytea`).Scan(&binaries); err != nil {
		t.Fatal(err)
	}
	if binaries != records/10 {
		t.Errorf("%d records have bytes, want %d", binaries, records/10)
	}
	if n := requests.Load(); n != 3 {
		t.Errorf("%d requests", n)
	}
}
