package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/klauspost/compress/zstd"

	"millrace/internal/config"
	"millrace/internal/send"
	"millrace/internal/testenv"
)

// sendStack is an API and a worker, each a process of its own, and a folder for files and positions.
type sendStack struct {
	env      []string
	addr     string
	services map[string]*testenv.Process
	conn     *pgx.Conn
	dir      string
}

// newSendStack starts an API and a worker that end with the test. They have settings, NAME=value, besides those that all have.
func newSendStack(t *testing.T, settings ...string) *sendStack {
	t.Helper()
	db := testenv.Schema(t)
	s := &sendStack{addr: testenv.FreeAddress(t), services: map[string]*testenv.Process{}, conn: testenv.Connect(t, db), dir: t.TempDir()}
	s.env = []string{"RABBITMQ_URL=" + os.Getenv("RABBITMQ_URL"), "POSTGRES_URL=" + string(db), "API_ADDR=" + s.addr, "WORKER_ADDR=127.0.0.1:0", "SHUTDOWN_DELAY=0s"}
	s.env = append(s.env, settings...)
	for _, name := range []string{"api", "worker"} {
		s.services[name] = testenv.StartMillrace(t, t.TempDir(), s.env, name)
	}
	testenv.AwaitReady(t, s.addr)
	return s
}

// start starts millrace send.
func (s *sendStack) start(t *testing.T, args ...string) *testenv.Process {
	t.Helper()
	return testenv.StartMillrace(t, s.dir, []string{"API_URL=http://" + s.addr}, append([]string{"send", "--positions", filepath.Join(s.dir, "positions")}, args...)...)
}

// run runs millrace send to its end, which must be of that status, and returns what it wrote.
func (s *sendStack) run(t *testing.T, status int, args ...string) string {
	t.Helper()
	p := s.start(t, args...)
	select {
	case <-p.Done:
	case <-time.After(10 * time.Minute):
		t.Fatalf("%q still runs", args)
	}
	if code := p.ProcessState.ExitCode(); code != status {
		t.Errorf("%q: exit status %d, want %d: %s", args, code, status, p.Out.String())
	}
	return p.Out.String()
}

// write makes a file of NDJSON that counts from n up to end.
func (s *sendStack) write(t *testing.T, name string, n, end int) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	s.appendTo(t, path, n, end)
	return path
}

// appendTo appends lines that count from n up to end.
func (s *sendStack) appendTo(t *testing.T, path string, n, end int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for ; n < end; n += 10_000 {
		if _, err := f.Write(countingLines(n, min(end, n+10_000))); err != nil {
			t.Fatal(err)
		}
	}
}

// countingLines returns lines of NDJSON that count from n up to end.
func countingLines(n, end int) []byte {
	var lines bytes.Buffer
	for ; n < end; n++ {
		fmt.Fprintf(&lines, `{"n":%d,"message":"step %d","filler":"%s"}`+"\n", n, n, strings.Repeat("x", 160))
	}
	return lines.Bytes()
}

// await waits until there are as many rows as counting lines, each once.
func (s *sendStack) await(t *testing.T, want int) {
	t.Helper()
	testenv.Eventually(t, 30*time.Second+time.Duration(want/1000)*time.Second, fmt.Sprintf("%d rows are stored", want), func() bool {
		return testenv.Count(t, s.conn, `SELECT count(*) FROM logs`) >= want
	})
	time.Sleep(300 * time.Millisecond) // what is stored twice may come a moment later
	if rows, lines := testenv.Count(t, s.conn, `SELECT count(*) FROM logs`), testenv.Count(t, s.conn, `SELECT count(DISTINCT data->'n') FROM logs`); rows != want || lines != want {
		t.Errorf("%d rows of %d lines, want %d of each", rows, lines, want)
	}
	if dead := testenv.Count(t, s.conn, `SELECT count(*) FROM dead_letters`); dead != 0 {
		t.Errorf("%d dead letters", dead)
	}
}

// sentUpTo returns how many bytes of a file the position says are sent or under way.
func (s *sendStack) sentUpTo(t *testing.T, path string) (next int64) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(s.dir, "positions", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		var position struct {
			Path string `json:"path"`
			Next int64  `json:"next"`
		}
		text, err := os.ReadFile(name)
		if err == nil && json.Unmarshal(text, &position) == nil && position.Path == path {
			next = max(next, position.Next)
		}
	}
	return next
}

// sendLines is how many lines the test of kills sends. make size sets it, since millions take minutes.
var sendLines = os.Getenv("MILLRACE_SEND_LINES")

// TestAFileThatIsSentThroughTwentyKillsIsStoredOnce kills millrace send on its way, and the API now and then, and then compares what is stored.
func TestAFileThatIsSentThroughTwentyKillsIsStoredOnce(t *testing.T) {
	s := newSendStack(t)
	const wanted = 20
	lines, apart := 100_000, int64(0)
	if sendLines != "" {
		var err error
		if lines, err = strconv.Atoi(sendLines); err != nil {
			t.Fatal(err)
		}
	}
	path := s.write(t, "app.ndjson", 0, lines)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if sendLines != "" {
		apart = info.Size() / (wanted + 1)
	}
	kills, resident := 0, int64(0)
	began := time.Now()
	for kills < wanted {
		before := s.sentUpTo(t, path) + apart
		p := s.start(t, "--parallel", "1", path)
		testenv.Eventually(t, 20*time.Second+time.Duration(lines/1000)*time.Second, "a block is under way", func() bool { return s.sentUpTo(t, path) > before || ended(p) })
		time.Sleep(time.Duration(rand.IntN(4000)) * time.Microsecond) // any moment is as good as another
		if ended(p) {
			t.Fatalf("it ended after %d kills, want %d: %s", kills, wanted, p.Out.String())
		}
		p.Signal(t, syscall.SIGKILL)
		<-p.Done
		resident = max(resident, residentMost(p))
		if kills++; kills%8 == 0 {
			s.services["api"].Signal(t, syscall.SIGKILL)
			<-s.services["api"].Done
			s.services["api"] = testenv.StartMillrace(t, t.TempDir(), s.env, "api")
		}
	}
	at := s.sentUpTo(t, path)
	if at <= 0 || at >= info.Size() {
		t.Errorf("the kills ended at byte %d of %d, want one on the way", at, info.Size())
	}
	s.run(t, 0, path)
	sent := time.Since(began)
	s.await(t, lines)
	t.Logf("%d lines in %v with %d kills, most resident memory %d KiB", lines, sent.Round(time.Second), kills, resident)
	if out := s.run(t, 0, path); !strings.Contains(out, "sent before") {
		t.Errorf("a file that is sent says %q", out)
	}
	s.await(t, lines)
}

// residentMost returns the most memory that a process which has ended had at once, in KiB.
func residentMost(p *testenv.Process) int64 {
	if usage, ok := p.ProcessState.SysUsage().(*syscall.Rusage); ok {
		return usage.Maxrss
	}
	return 0
}

// ended reports whether a process has ended.
func ended(p *testenv.Process) bool {
	select {
	case <-p.Done:
		return true
	default:
		return false
	}
}

func TestCompressedFilesAndStandardInputAreSent(t *testing.T) {
	s := newSendStack(t)
	var gz, zs bytes.Buffer
	z := gzip.NewWriter(&gz)
	_, _ = z.Write(countingLines(0, 20_000)) // to memory
	_ = z.Close()
	e, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = e.Write(countingLines(20_000, 40_000)) // to memory
	_ = e.Close()
	var half bytes.Buffer
	z = gzip.NewWriter(&half)
	_, _ = z.Write(countingLines(40_000, 60_000)) // to memory
	_ = z.Close()
	for name, content := range map[string][]byte{"a.gz": gz.Bytes(), "b.zst": zs.Bytes(), "cut.gz": half.Bytes()[:half.Len()/2]} {
		if err := os.WriteFile(filepath.Join(s.dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.run(t, 0, "a.gz", "--compress", "on", "b.zst")
	s.await(t, 40_000)
	s.run(t, 0, "b.zst", "a.gz")
	s.await(t, 40_000)
	out := s.run(t, 2, "cut.gz")
	var stored int
	if _, err := fmt.Sscanf(out, "millrace: %d lines stored", &stored); err != nil || stored == 0 || stored == 20_000 || !strings.Contains(out, "cut.gz: unexpected EOF") {
		t.Errorf("half a file says %q", out)
	}
	s.await(t, 40_000+stored)

	// Standard input is sent when nothing more comes, and at its end.
	in, out2 := io.Pipe()
	result, ended := make(chan send.Result, 1), make(chan error, 1)
	go func() {
		r, err := send.Run(t.Context(), send.Config{URL: config.APIURL("http://" + s.addr), Stdin: in, Format: "json", Parallel: 2,
			Note: t.Logf, Progress: func(int64) {}})
		result <- r
		ended <- err
	}()
	_, _ = out2.Write(countingLines(60_000, 60_010)) // it takes all
	s.await(t, 40_010+stored)
	_, _ = out2.Write(countingLines(60_010, 60_020)[:500]) // half a line at the end
	_ = out2.Close()
	if r, err := <-result, <-ended; r.Stored != 12 || r.Refused != 1 || err != nil {
		t.Errorf("got %+v, %v, want 12 stored and 1 refused", r, err)
	}
	s.await(t, 40_012+stored)
}

func TestRefusedLinesAreInAFileWithTheirReason(t *testing.T) {
	s := newSendStack(t)
	path := filepath.Join(s.dir, "mixed")
	lines := []string{`{"n":0}`, `{"n":`, `text`, ``, `{"n":1}`, `[2]`, `{"n":3,"a":"\u0000"}`, `{"n":4,"long":"` + strings.Repeat("x", 2<<20) + `"}`, `{"n":5}`}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(t, 1, "--parse", "json", "--refused", "refused", path)
	s.await(t, 3)
	report, err := os.ReadFile(filepath.Join(s.dir, "refused"))
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[int]string)
	for line := range bytes.Lines(report) {
		var r struct {
			File, Error, Text string
			Line              int
		}
		if err := json.Unmarshal(line, &r); err != nil || r.File != path || r.Text != lines[r.Line-1] {
			t.Errorf("%.200s: %v, want line %d of %s", line, err, r.Line, path)
		}
		got[r.Line] = r.Error
	}
	for line, want := range map[int]string{2: "at byte", 3: "at byte", 6: "object", 7: "0000", 8: "large"} {
		if !strings.Contains(got[line], want) {
			t.Errorf("line %d: got %q, want %q", line, got[line], want)
		}
	}
	if len(got) != 5 {
		t.Errorf("got %v, want 5 lines", got)
	}
}

// TestWhatIsSentWhileTheAPIIsAwayIsStoredOnceItIsBack also loses an answer.
func TestWhatIsSentWhileTheAPIIsAwayIsStoredOnceItIsBack(t *testing.T) {
	s := newSendStack(t)
	path := s.write(t, "app.ndjson", 0, 30_000)
	s.services["api"].Stop(t)
	p := s.start(t, path)
	testenv.Eventually(t, 20*time.Second, "send says that there is no answer", func() bool { return strings.Contains(p.Out.String(), "trying again") })

	// A listener takes a request, and hangs up without an answer.
	listener, err := net.Listen("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Read(make([]byte, 1<<16)) // some of it
		_ = conn.Close()
	}
	_ = listener.Close()
	s.services["api"] = testenv.StartMillrace(t, t.TempDir(), s.env, "api")
	<-p.Done
	if code := p.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit status %d: %s", code, p.Out.String())
	}
	s.await(t, 30_000)
}

// TestAFileThatIsFollowedMayBeRotatedAndTruncated rotates by renaming, by copying and truncating, and while nobody follows, compressed as well.
func TestAFileThatIsFollowedMayBeRotatedAndTruncated(t *testing.T) {
	s := newSendStack(t)
	path := s.write(t, "app.log", 0, 1000)
	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(filepath.Join(s.dir, from), filepath.Join(s.dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	p := s.start(t, "-f", path)
	s.await(t, 1000)
	s.appendTo(t, path, 1000, 2000)
	s.await(t, 2000)

	rename("app.log", "app.log.1")
	s.appendTo(t, filepath.Join(s.dir, "app.log.1"), 2000, 2100) // by a program that has not opened it anew yet
	s.appendTo(t, path, 2100, 3000)
	s.await(t, 3000)
	s.appendTo(t, filepath.Join(s.dir, "app.log.1"), 3000, 3100)
	s.await(t, 3100)

	// logrotate's copytruncate.
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rename("app.log.1", "app.log.2")
	if err := os.WriteFile(filepath.Join(s.dir, "app.log.1"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 20*time.Second, "send says that the file is shorter", func() bool { return strings.Contains(p.Out.String(), "truncated") })
	s.appendTo(t, path, 3100, 4000)
	s.await(t, 4000)

	p.Signal(t, syscall.SIGTERM)
	<-p.Done
	if code := p.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit status %d: %s", code, p.Out.String())
	}
	// Two rotations while nobody follows; the older file is compressed.
	s.appendTo(t, path, 4000, 4500)
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var gz bytes.Buffer
	z := gzip.NewWriter(&gz)
	_, _ = z.Write(old) // to memory
	_ = z.Close()
	if err := os.WriteFile(filepath.Join(s.dir, "app.log.2.gz"), gz.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s.write(t, "app.log.1.new", 4500, 5000)
	rename("app.log.1.new", "app.log.1")
	s.appendTo(t, path, 5000, 5500)
	later := time.Now().Add(2 * time.Second)
	for i, name := range []string{"app.log.1", "app.log"} {
		if err := os.Chtimes(filepath.Join(s.dir, name), later, later.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 { // killed, too
		p = s.start(t, "-f", path)
		s.await(t, 5500)
		p.Signal(t, syscall.SIGKILL)
		<-p.Done
	}
}
