package service

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/config"
)

// stream returns a file and the JOURNAL_STREAM that names it.
func stream(t *testing.T) (*os.File, string) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	return f, fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

func TestTheJournalGetsPrioritiesAndNoTime(t *testing.T) {
	for _, tt := range []struct{ format, want string }{
		{"text", "<7>level=DEBUG msg=d service=api\n<6>level=INFO msg=i service=api\n<4>level=WARN msg=\"w\\nw\" service=api k=v\n<3>level=ERROR msg=e service=api g.time=1\n"},
		{"json", `<7>{"level":"DEBUG","msg":"d","service":"api"}` + "\n" + `<6>{"level":"INFO","msg":"i","service":"api"}` + "\n" +
			`<4>{"level":"WARN","msg":"w\nw","service":"api","k":"v"}` + "\n" + `<3>{"level":"ERROR","msg":"e","service":"api","g":{"time":1}}` + "\n"},
	} {
		f, name := stream(t)
		t.Setenv("JOURNAL_STREAM", name)
		log := NewLogger(f, config.Process{LogLevel: "debug", LogFormat: tt.format}).With("service", "api")
		log.Debug("d")
		log.Info("i")
		log.Warn("w\nw", "k", "v")
		log.WithGroup("g").Error("e", "time", 1)
		got, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.format, diff)
		}
	}
}

func TestARedirectedOutputIsNotTheJournal(t *testing.T) {
	f, _ := stream(t)
	_, other := stream(t)
	t.Setenv("JOURNAL_STREAM", other)
	if toJournal(f) {
		t.Error("a file that JOURNAL_STREAM does not name is taken for the journal")
	}
}

func TestTheServiceManagerIsTold(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify("READY=1"); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
	name := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	if err := Notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := conn.Read(b)
	if err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("got %q, %v", b[:n], err)
	}
	t.Setenv("NOTIFY_SOCKET", name+".gone")
	if err := Notify("READY=1"); err == nil {
		t.Error("a service manager that is not there was told")
	}
}
