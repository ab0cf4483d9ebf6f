package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/valyala/fasthttp"

	"millrace/api"
	"millrace/bench/ceiling"
	"millrace/bench/load"
	"millrace/internal/config"
	"millrace/query"
	"millrace/worker"
)

// child names the role that a process of this test binary has: a server, in a process of its own as in real life.
const child = "MILLRACE_BENCH_CHILD"

// plain, when set, has the API leave all answers to fasthttp.
const plain = "MILLRACE_BENCH_PLAIN"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(child) {
	case "":
		os.Exit(m.Run())
	case "api":
		err = runAPI()
	case "worker":
		err = runWorker()
	case "query":
		err = runQuery()
	case "nothing":
		err = runNothing()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func runAPI() error {
	var c api.Config
	c.OnListen = func(a net.Addr) { fmt.Println(a) }
	c.PlainAnswers = os.Getenv(plain) != ""
	return runService(&c, &c.Name, &c.Log, func(ctx context.Context) error { return api.Run(ctx, c) })
}

func runWorker() error {
	var c worker.Config
	c.OnListen = func(a net.Addr) { fmt.Println(a) }
	return runService(&c, &c.Name, &c.Log, func(ctx context.Context) error { return worker.Run(ctx, c) })
}

func runQuery() error {
	var c query.Config
	var name string // it has no queues
	c.OnListen = func(a net.Addr) { fmt.Println(a) }
	return runService(&c, &name, &c.Log, func(ctx context.Context) error { return query.Run(ctx, c) })
}

// runService runs a service with the settings of the environment and the queues named on standard input, until that
// ends.
func runService(c any, name *string, log **slog.Logger, run func(context.Context) error) error {
	if err := config.Load(c); err != nil {
		return err
	}
	if err := json.NewDecoder(os.Stdin).Decode(name); err != nil {
		return err
	}
	*log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends when the parent wants it, or is gone
		cancel()
	}()
	return run(ctx)
}

// runNothing is the ceiling of every HTTP API: it answers 202.
func runNothing() error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return (&fasthttp.Server{
		Handler:            func(ctx *fasthttp.RequestCtx) { ctx.SetStatusCode(fasthttp.StatusAccepted) },
		MaxRequestBodySize: 64 << 20,
	}).Serve(ln)
}

// server is a child process that listens.
type server struct {
	addr string
	pid  int
	stop func(testing.TB) // ends it and waits; may be called again
}

// startServer starts a child and waits until it listens. input is what it reads first.
func startServer(b testing.TB, role string, input any, env ...string) *server {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), child+"="+role), env...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	var once sync.Once
	stop := func(b testing.TB) {
		once.Do(func() {
			_ = in.Close() // tells the child to end
			if err := cmd.Wait(); err != nil {
				b.Errorf("%s: %v", role, err)
			}
		})
	}
	b.Cleanup(func() { stop(b) })
	if err := json.NewEncoder(in).Encode(input); err != nil {
		b.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("%s does not listen: %v", role, err)
	}
	return &server{strings.TrimSpace(line), cmd.Process.Pid, stop}
}

// dial opens connections to s that are closed with the benchmark.
func (s *server) dial(b testing.TB, connections int, requests ...[]byte) *load.Client {
	b.Helper()
	c, err := load.Dial(s.addr, connections, requests...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := c.Close(); err != nil {
			b.Error(err)
		}
	})
	return c
}

// Short names for what ceiling has, because they are used often.
const (
	recordBytes  = ceiling.RecordBytes
	frameRecords = ceiling.FrameRecords
)

func bodies(count, n int) [][]byte { return ceiling.Bodies(count, n, recordBytes) }
