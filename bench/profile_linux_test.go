package bench

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"millrace/bench/load"
	"millrace/internal/testenv"
)

var (
	profilesDir  = flag.String("profiles", "", "folder to save profiles under load in; empty: TestProfiles is skipped")
	profilesTime = flag.Duration("profiletime", 20*time.Second, "how long each load of TestProfiles lasts, whole seconds")
)

// stage is a part of the work of a service: the samples of a profile whose functions, from the innermost to the
// outermost, match, and that no stage before it has.
type stage struct {
	name  string
	match *regexp.Regexp
}

func stages(pairs ...string) (all []stage) {
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, stage{pairs[i], regexp.MustCompile(pairs[i+1])})
	}
	return all
}

// What no service has for itself.
const (
	garbage   = `runtime\.(gcBgMarkWorker|gcAssistAlloc|bgsweep|bgscavenge|gcDrain|markroot)`
	scheduler = `runtime\.(schedule|findRunnable|park_m|mcall|mstart|sysmon|goready|ready|futex|netpoll|startm|wakep|notesleep|asyncPreempt|goexit0)\b`
	reading   = `(syscall\.read|poll\.\(\*FD\)\.Read|direct\.\(\*Conn\)\.Read)`
	measuring = `promhttp\.|prometheus/procfs|processCollector|runtime/pprof\.|net/http/pprof\.|net/http\.\(\*(conn|connReader)\)|fasthttpadaptor`
	writing   = `(syscall\.write|poll\.\(\*FD\)\.Write|direct\.\(\*Conn\)\.Write)`
)

var stagesOf = map[string][]stage{
	"api": stages(
		"garbage collection", garbage,
		"scanner", `millrace/internal/scan\.`,
		"compression of frames", `frame\.\(\*Compressor\)`,
		"decoding of bodies", `millrace/api\.decoder`,
		"HTTP: the kernel's write", `front\.\(\*Conn\)\.(writeEarly|Write)`,
		"confirms: read and handed on", `millrace/api/publish\.\(\*lane\)\.receive|amqp091-go\.\(\*(Connection\)\.(reader|dispatch)|Channel\)\.(dispatch|recv)|confirms)`,
		"AMQP: the kernel's write", writing+`.*amqp091-go`,
		"AMQP: the rest of publishing", `amqp091-go`,
		"frame: records put together, taken, settled", `millrace/api/publish\.\(\*(Publisher|lane|Frame|gather|framePool)\)`,
		"metrics and profiles, for this", measuring,
		"HTTP: the kernel's read", reading,
		"HTTP: bodies", `millrace/api\.\(\*body`,
		"HTTP: the rest of fasthttp", `valyala/fasthttp\.`,
		"scheduler", scheduler,
	),
	"worker": stages(
		"garbage collection", garbage,
		"decompression of frames", `frame\.Decompress`,
		"checksums of segments", `cespare/xxhash`,
		"times found in records", `millrace/(worker\.\(\*recordTimes\)|internal/eventtime)`,
		"COPY: rows encoded", `millrace/worker\.\(\*copyReader\)`,
		"COPY: the kernel's write", writing+`.*pgconn\.\(\*PgConn\)\.CopyFrom|`+writing+`.*bgreader|`+writing+`.*pgproto3`,
		"COPY, ledger, commit: the rest of pgx", `jackc/pgx`,
		"AMQP: the kernel's read", reading+`.*(amqp091-go|worker\.gated)`,
		"AMQP: the rest of consuming", `amqp091-go`,
		"frames taken apart", `millrace/(worker\.(decode|parseFrame|\(\*consumer\))|internal/frame\.)`,
		"batches", `millrace/worker\.`,
		"metrics and profiles, for this", measuring,
		"scheduler", scheduler,
	),
}

// TestProfiles saves the profiles of API and worker under two loads, and says where the time went: by the stages of
// each, and by the processes of the machine.
func TestProfiles(t *testing.T) {
	if *profilesDir == "" {
		t.Skip("make profile saves profiles")
	}
	if err := os.MkdirAll(*profilesDir, 0o755); err != nil {
		t.Fatal(err)
	}
	db := testenv.Schema(t)
	q := newQueues(t)
	pprofs := map[string]string{"api": testenv.FreeAddress(t), "worker": testenv.FreeAddress(t)}
	api := startServer(t, "api", q.Name, "API_ADDR=127.0.0.1:0", "PPROF_ADDR="+pprofs["api"])
	worker := startWorker(t, db, q, "PPROF_ADDR="+pprofs["worker"])
	for _, s := range []*server{api, worker} {
		testenv.Eventually(t, 20*time.Second, s.addr+" is ready", func() bool {
			answer, err := http.Get("http://" + s.addr + "/ready")
			if err != nil {
				return false
			}
			_ = answer.Body.Close()
			return answer.StatusCode == http.StatusOK
		})
	}
	loads := []struct {
		name               string
		batch, connections int
		burst              time.Duration // between two looks at how far storing is behind
	}{{"batches", 500, 8, 20 * time.Millisecond}, {"single", 1, 64, time.Second}}
	for _, l := range loads {
		var requests [][]byte
		path := "/log/batch"
		if l.batch == 1 {
			path = "/log"
		}
		for _, body := range bodies(64, l.batch) {
			requests = append(requests, load.Post(path, body))
		}
		client := api.dial(t, l.connections, requests...)
		send := func(d time.Duration) (stored float64, cpu time.Duration) {
			first := worker.stored(t)
			sent, now, looked := first, first, time.Now()
			for start := looked; time.Since(start) < d; {
				if time.Since(looked) > 100*time.Millisecond { // looking takes the worker's time
					now, looked = worker.stored(t), time.Now()
				}
				if sent-now > 2*backlog {
					time.Sleep(5 * time.Millisecond) // what was sent must be stored before more is sent
					continue
				}
				r, err := client.Run(l.burst)
				if err != nil || r.Rate() == 0 {
					t.Fatalf("%s: %v, %v", l.name, r.Status, err)
				}
				sent += float64(l.batch * r.Answers())
				cpu += r.CPU
			}
			return worker.stored(t) - first, cpu
		}
		send(time.Second) // to be warm
		before := processorTimes(t, api, worker)
		var fetching sync.WaitGroup
		for name, addr := range pprofs {
			for kind, path := range map[string]string{"cpu": "profile", "allocs": "allocs"} {
				fetching.Go(func() {
					file := filepath.Join(*profilesDir, fmt.Sprintf("%s-%s-%s.pb.gz", l.name, name, kind))
					if err := fetch(fmt.Sprintf("http://%s/debug/pprof/%s?seconds=%d", addr, path, int(profilesTime.Seconds())), file); err != nil {
						t.Error(err)
					}
				})
			}
		}
		start := time.Now()
		stored, cpu := send(*profilesTime)
		elapsed := time.Since(start).Seconds()
		after := processorTimes(t, api, worker)
		fetching.Wait()
		if t.Failed() {
			return
		}
		var text bytes.Buffer
		fmt.Fprintf(&text, "\n%s: %d records a request, %d connections: %.0f records/s stored\n", l.name, l.batch, l.connections, stored/elapsed)
		fmt.Fprintf(&text, "\n  processor time, in cores\n")
		after["load generator"], before["load generator"] = cpu.Seconds(), 0
		total := 0.0
		for _, name := range byValue(after) {
			cores := (after[name] - before[name]) / elapsed
			total += cores
			if cores >= 0.005 {
				fmt.Fprintf(&text, "    %-28s %.2f\n", name, cores)
			}
		}
		fmt.Fprintf(&text, "    %-28s %.2f\n", "together", total)
		for _, name := range []string{"api", "worker"} {
			p := readProfile(t, filepath.Join(*profilesDir, fmt.Sprintf("%s-%s-cpu.pb.gz", l.name, name)))
			shares, rest := divide(p, stagesOf[name])
			fmt.Fprintf(&text, "\n  %s: %% of its processor time\n", name)
			for _, s := range stagesOf[name] {
				fmt.Fprintf(&text, "    %-44s %5.1f\n", s.name, 100*shares[s.name])
			}
			fmt.Fprintf(&text, "    %-44s %5.1f  %s\n", "the rest", 100*shares[""], rest)
		}
		fmt.Print(text.String())
		if err := os.WriteFile(filepath.Join(*profilesDir, l.name+".txt"), text.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func fetch(url, file string) error {
	answer, err := http.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close() // only read
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, answer.Status, body)
	}
	return os.WriteFile(file, body, 0o644)
}

func readProfile(t testing.TB, file string) *profile.Profile {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // only read
	p, err := profile.Parse(f)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// divide returns the share of each stage, that of no stage under "", and the innermost functions of the latter.
func divide(p *profile.Profile, stages []stage) (shares map[string]float64, rest string) {
	shares = make(map[string]float64)
	others := make(map[string]float64)
	total := 0.0
	for _, s := range p.Sample {
		var stack []string
		for _, at := range s.Location {
			for _, line := range at.Line {
				stack = append(stack, line.Function.Name)
			}
		}
		whole, name := strings.Join(stack, ";"), ""
		for _, st := range stages {
			if st.match.MatchString(whole) {
				name = st.name
				break
			}
		}
		value := float64(s.Value[len(s.Value)-1])
		shares[name] += value
		total += value
		if name == "" && len(stack) > 0 {
			others[stack[0]] += value
		}
	}
	for name := range shares {
		shares[name] /= total
	}
	top := byValue(others)
	return shares, strings.Join(top[:min(3, len(top))], ", ")
}

func byValue(m map[string]float64) []string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(m[b], m[a]), cmp.Compare(a, b)) })
	return names
}

// processorTimes returns how many seconds of processor time api, worker and the private servers have taken. Servers that
// run elsewhere, in containers or on other machines, are not seen.
func processorTimes(t testing.TB, api, worker *server) map[string]float64 {
	t.Helper()
	times := map[string]float64{
		"api":    api.metrics(t)["process_cpu_seconds_total"],
		"worker": worker.metrics(t)["process_cpu_seconds_total"],
	}
	all := make(map[int]stat)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if s, ok := readStat(pid); ok {
			all[pid] = s
		}
	}
	stack := os.Getpid() // up to millrace stack, which has the servers
	for all[stack].name != "millrace" && all[stack].parent > 1 {
		stack = all[stack].parent
	}
	names := map[string]string{"beam.smp": "RabbitMQ", "postgres": "PostgreSQL", "redis-server": "Redis"}
	for pid, s := range all {
		name, ok := names[s.name]
		for up := pid; ok && up > 1; up = all[up].parent {
			if up == stack {
				times[name] += s.seconds
				break
			}
		}
	}
	return times
}

// stat is what /proc says of a process: its processor time is its own and that of the children it has waited for.
type stat struct {
	name    string
	parent  int
	seconds float64
}

func readStat(pid int) (stat, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if err != nil || open < 0 || end < open {
		return stat{}, false // it has ended
	}
	s := stat{name: string(b[open+1 : end])}
	fields := strings.Fields(string(b[end+1:]))
	if len(fields) < 15 {
		return stat{}, false
	}
	if s.parent, err = strconv.Atoi(fields[1]); err != nil {
		return stat{}, false
	}
	const ticks = 100 // a second, on every Linux that Go runs on
	for _, f := range fields[11:15] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return stat{}, false
		}
		s.seconds += n / ticks
	}
	return s, true
}
