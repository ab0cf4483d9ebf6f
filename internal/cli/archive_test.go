package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/pg"
	"millrace/internal/testenv"
	"millrace/worker/partition"
)

// TestArchiveCommandsShowVerifyAndRestore archives rows of two days ago, damages a file, and has the commands find it.
func TestArchiveCommandsShowVerifyAndRestore(t *testing.T) {
	url := testenv.Schema(t)
	db := testenv.Connect(t, url)
	folder := t.TempDir()
	env := []string{"POSTGRES_URL=" + string(url), "ARCHIVE_URL=file://" + folder}
	day := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -2)
	testenv.Exec(t, db, "SELECT millrace_add_partition('logs', $1, $2, $3)", "logs_"+day.Format("20060102"), day.Format(time.RFC3339), day.AddDate(0, 0, 1).Format(time.RFC3339))
	for i := range 5 {
		id := uuid.Must(uuid.NewV7())
		testenv.Exec(t, db, "INSERT INTO logs (id, inserted_at, data) VALUES ($1, $2, $3::text::jsonb)", [16]byte(id), day.Add(time.Duration(i)*time.Hour), fmt.Sprintf(`{"n": %d}`, i))
	}
	link := func() pg.Link {
		conn := testenv.Connect(t, url)
		testenv.Exec(t, conn, "SET TimeZone = 'UTC'")
		return pg.NewLink(func(context.Context) (*pgx.Conn, error) { return conn, nil }, nil)
	}
	archiver := &partition.Archiver{
		Link: link(), Source: link(), Partitions: partition.New(24 * time.Hour), Store: archive.Folder(folder),
		Calm: func(context.Context) bool { return true }, Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
	if err := archiver.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	run := func(code int, args ...string) string {
		t.Helper()
		p := testenv.StartMillrace(t, t.TempDir(), env, args...)
		<-p.Done
		if got := p.ProcessState.ExitCode(); got != code {
			t.Fatalf("%v: exit status %d, want %d: %s", args, got, code, p.Out)
		}
		return p.Out.String()
	}
	if got := run(0, "archive", "ls"); !strings.Contains(got, day.Format(time.RFC3339)) {
		t.Errorf("ls: %s", got)
	}
	if got := run(0, "archive", "verify", day.Format(time.DateOnly)); !strings.Contains(got, "1 files, 0 damaged or missing; 5 rows") {
		t.Errorf("verify: %s", got)
	}
	var manifest struct {
		URL   string
		Files []struct {
			Name string
			Rows int
		}
	}
	if err := json.Unmarshal([]byte(run(0, "archive", "manifest")), &manifest); err != nil || len(manifest.Files) != 1 || manifest.Files[0].Rows != 5 || manifest.URL != "file://"+folder {
		t.Fatalf("manifest: got %+v, %v", manifest, err)
	}
	testenv.Exec(t, db, "UPDATE archive_ranges SET files_only = true")
	testenv.Exec(t, db, "DELETE FROM logs")
	if got := run(0, "archive", "restore", day.Format(time.DateOnly)); !strings.Contains(got, "5 rows restored") {
		t.Errorf("restore: %s", got)
	}
	if n := testenv.Count(t, db, "SELECT count(*) FROM logs WHERE data ? 'n'"); n != 5 {
		t.Errorf("%d rows after the restore, want 5", n)
	}
	file := filepath.Join(folder, filepath.FromSlash(manifest.Files[0].Name))
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/4] ^= 0xff
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(1, "archive", "verify"); !strings.Contains(got, manifest.Files[0].Name) {
		t.Errorf("verify of a damaged file: %s", got)
	}
}
