package keys

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/testenv"
)

// watched is a keys file that File.Watch watches until the test ends.
type watched struct {
	*File
	t     testing.TB
	name  string
	again chan os.Signal
	log   *testenv.Output
}

func watch(t testing.TB, name string) *watched {
	t.Helper()
	f, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{f, t, name, make(chan os.Signal), new(testenv.Output)}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		f.Watch(ctx, w.again, slog.New(slog.NewTextHandler(w.log, nil)))
		close(done)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return w
}

func write(t testing.TB, name string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (w *watched) verdict(secret string) Verdict {
	_, v := w.Check(header{"X-Api-Key": secret}, Write)
	return v
}

func (w *watched) until(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(testenv.LeastWait); !ok(); {
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: not within %v; the log: %s", what, testenv.LeastWait, w.log)
		}
		time.Sleep(5 * time.Millisecond) // polls what the watch polls
	}
}

func TestAChangeIsSeenHoweverTheFileIsReplaced(t *testing.T) {
	a, secretA := newKey(t, "a", Write)
	b, secretB := newKey(t, "b", Write)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, replace := range map[string]func(dir, name string){
		"written in place": func(_, name string) { write(t, name, b.String()) },
		"renamed over": func(dir, name string) {
			write(t, filepath.Join(dir, "new"), b.String())
			must(os.Rename(filepath.Join(dir, "new"), name))
		},
		"removed and made": func(_, name string) {
			must(os.Remove(name))
			write(t, name, b.String())
		},
		"a link led elsewhere, as Kubernetes does": func(dir, _ string) {
			must(os.Mkdir(filepath.Join(dir, "2"), 0o700))
			write(t, filepath.Join(dir, "2", "keys"), b.String())
			must(os.Symlink("2", filepath.Join(dir, "tmp")))
			must(os.Rename(filepath.Join(dir, "tmp"), filepath.Join(dir, "data")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			must(os.Mkdir(filepath.Join(dir, "1"), 0o700))
			must(os.Symlink("1", filepath.Join(dir, "data")))
			file := filepath.Join(dir, "data", "keys")
			write(t, file, a.String())
			w := watch(t, file)
			if w.verdict(secretA) != Allowed || w.verdict(secretB) != Unknown {
				t.Fatal("the first keys do not hold")
			}
			replace(dir, file)
			w.until("the change is seen", func() bool { return w.verdict(secretA) == Unknown && w.verdict(secretB) == Allowed })
		})
	}
}

func TestASignalHasTheKeysReadAtOnce(t *testing.T) {
	a, secretA := newKey(t, "a", Write)
	file := filepath.Join(t.TempDir(), "keys")
	write(t, file, a.String())
	w := watch(t, file)
	write(t, file, "# nobody")
	w.again <- syscall.SIGHUP
	w.again <- syscall.SIGHUP // taken once the first was done
	if w.verdict(secretA) != Unknown {
		t.Error("the key is not revoked")
	}
}

func TestAFileThatCantBeReadAgainLeavesTheKeysAsTheyWere(t *testing.T) {
	a, secret := newKey(t, "a", Write)
	dir := t.TempDir()
	file := filepath.Join(dir, "keys")
	write(t, file, a.String())
	f, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry()
	if err := f.Register(registry); err != nil {
		t.Fatal(err)
	}
	check := func(errors, success float64) {
		t.Helper()
		if _, verdict := f.Check(header{"X-Api-Key": secret}, Write); verdict != Allowed {
			t.Errorf("the key has verdict %d", verdict)
		}
		if _, verdict := f.Check(header{}, Write); verdict != Unknown {
			t.Errorf("no key has verdict %d", verdict)
		}
		families, err := registry.Gather()
		if err != nil || len(families) != 2 {
			t.Fatalf("metrics: %v, %v", families, err)
		}
		// They are sorted by name.
		s, e := families[0].GetMetric()[0].GetGauge().GetValue(), families[1].GetMetric()[0].GetCounter().GetValue()
		if e != errors || s != success {
			t.Errorf("%v errors and success %v, want %v and %v", e, s, errors, success)
		}
	}
	check(0, 1)
	write(t, file, a.String(), "b what write")
	if err := f.Reload(); err == nil || !strings.Contains(err.Error(), file+": line 2: ") {
		t.Errorf("a bad line: got %v, want the file and the line", err)
	}
	check(1, 0)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := f.Reload(); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("no file: got %v, want its name", err)
	}
	check(2, 0)
	if err := syscall.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Reload(); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a pipe: got %v, want it refused", err)
	}
	check(3, 0)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	write(t, file, a.String())
	if err := f.Reload(); err != nil {
		t.Error(err)
	}
	check(3, 1)
}

func TestAWatchedFileThatIsBadIsLoggedOnceAndHealsByItself(t *testing.T) {
	a, secretA := newKey(t, "a", Write)
	b, secretB := newKey(t, "b", Write)
	file := filepath.Join(t.TempDir(), "keys")
	write(t, file, a.String())
	w := watch(t, file)
	write(t, file, "nonsense")
	w.until("the mistake is logged", func() bool { return strings.Contains(w.log.String(), "line 1: 1 words") })
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	w.until("the missing file is logged", func() bool { return strings.Contains(w.log.String(), "no such file") })
	if w.verdict(secretA) != Allowed {
		t.Error("the keys did not stay")
	}
	write(t, file, b.String())
	w.until("the new keys hold", func() bool { return w.verdict(secretB) == Allowed && w.verdict(secretA) == Unknown })
	if n := strings.Count(w.log.String(), "level=ERROR"); n != 2 {
		t.Errorf("%d errors were logged, want 2:\n%s", n, w.log)
	}
}

func TestWhatIsKnownOfAKeyOutlivesAReload(t *testing.T) {
	now := time.Now()
	a, secretA := newKey(t, "a", Write)
	b, secretB := newKey(t, "b", Write, Read)
	a.Rate, a.Burst, b.Rate, b.Burst = 1, 10, 1, 10
	file := filepath.Join(t.TempDir(), "keys")
	write(t, file, a.String(), b.String())
	f, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	key := func(secret string) *Key {
		t.Helper()
		k, verdict := f.Check(header{"X-Api-Key": secret}, Write)
		if verdict != Allowed {
			t.Fatalf("verdict %d", verdict)
		}
		return k
	}
	reload := func(lines ...string) {
		t.Helper()
		write(t, file, lines...)
		if err := f.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	gone := func(k *Key) bool {
		select {
		case <-k.Gone():
			return true
		default:
			return false
		}
	}
	records := func(k *Key) uint64 {
		requests, n := k.Use()
		if requests[202] == 0 {
			t.Errorf("requests: %v", requests)
		}
		return n
	}

	firstA, firstB := key(secretA), key(secretB)
	for _, k := range []*Key{firstA, firstB} {
		if k.Take(10, now) != 0 {
			t.Fatal("the bucket is not full at the start")
		}
		k.Answered(202, 10)
	}
	b.Burst = 5
	reload("# moved", b.String(), a.String())
	if key(secretA).Take(1, now) == 0 {
		t.Error("a limit that did not change was filled up")
	}
	if key(secretB).Take(5, now) != 0 || key(secretB).Take(1, now) == 0 {
		t.Error("a limit that changed does not hold")
	}
	if records(key(secretA)) != 10 || records(key(secretB)) != 10 {
		t.Error("the counts began anew")
	}
	if gone(firstA) || gone(firstB) {
		t.Error("a key that still lets in is gone")
	}

	b.Scopes = []string{Write}
	reload(b.String())
	if !gone(firstA) || !gone(firstB) {
		t.Error("a key that was revoked, or one that lost a scope, is not gone")
	}
	if gone(key(secretB)) {
		t.Error("the key that has other scopes is gone from the start")
	}
	firstA.Answered(202, 1) // a request that was under way
	rotated, secretC := newKey(t, "b", Write)
	rotated.Rate, rotated.Burst = b.Rate, b.Burst
	before := key(secretB)
	reload(rotated.String())
	if !gone(before) || records(key(secretC)) != 10 || key(secretC).Take(1, now) == 0 {
		t.Error("a key that was made anew under its name has not its limit and counts, or the old one is not gone")
	}
}

func TestChecksGoOnWhileTheKeysAreReadAgain(t *testing.T) {
	a, secret := newKey(t, "a", Write)
	a.Rate, a.Burst = 1000, 1000
	file := filepath.Join(t.TempDir(), "keys")
	write(t, file, a.String())
	f, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var checking sync.WaitGroup
	for range 4 {
		checking.Go(func() {
			for ctx.Err() == nil {
				k, verdict := f.Check(header{"X-Api-Key": secret}, Write)
				if verdict != Allowed {
					t.Errorf("verdict %d", verdict)
					return
				}
				k.Take(1, time.Now())
				k.Answered(202, 1)
			}
		})
	}
	for range 200 {
		if err := f.Reload(); err != nil {
			t.Error(err)
		}
	}
	stop()
	checking.Wait()
}
