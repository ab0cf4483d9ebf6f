package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"millrace/api"
	"millrace/bench/load"
	"millrace/internal/config"
	"millrace/query"
	"millrace/worker"
)

// child names the role that a process of this test binary has: a server, in a process of its own as in real life.
const child = "MILLRACE_BENCH_CHILD"

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
	return &server{strings.TrimSpace(line), stop}
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

// recordBytes is the size of the records that are sent, without the line's end.
const recordBytes = 264

// record makes a log record as services write them.
func record(rng *rand.Rand) []byte {
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	head := fmt.Sprintf(`{"time":"2026-11-%02dT%02d:%02d:%02d.%06dZ","level":%q,"service":%q,"trace_id":"%016x","http":{"method":%q,"path":"/api/v1/%s/%d","status":%d},"duration_ms":%.3f,"message":"`,
		1+rng.IntN(30), rng.IntN(24), rng.IntN(60), rng.IntN(60), rng.IntN(1e6),
		pick("info", "info", "info", "warn", "error"), pick("checkout", "cart", "search", "auth"), rng.Uint64(),
		pick("GET", "POST"), pick("orders", "users", "items"), rng.IntN(1e6), 200+rng.IntN(4)*100, rng.ExpFloat64()*40)
	const words = "request served from the upstream pool after one retry with a warm cache and nothing else to say"
	return append(append([]byte(head), words[:recordBytes-len(head)-2]...), `"}`...)
}

// records makes the bodies of requests with n records each.
func bodies(count, n int) [][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	all := make([][]byte, count)
	for i := range all {
		for range n {
			all[i] = append(append(all[i], record(rng)...), '\n')
		}
	}
	return all
}

// median returns the middle of the values, and the distance between their quartiles as a share of it.
func median(values []float64) (middle, spread float64) {
	v := slices.Sorted(slices.Values(values))
	middle = v[len(v)/2]
	return middle, (v[len(v)*3/4] - v[len(v)/4]) / middle
}

// round is how long product or ceiling run in one turn.
const round = 400 * time.Millisecond
