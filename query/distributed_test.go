package query

import (
	"context"
	"net/http"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// TestTheTailOfADistributedTableIsRefused, with a stand-in for Citus's catalog.
func TestTheTailOfADistributedTableIsRefused(t *testing.T) {
	url := testenv.Schema(t)
	db := testenv.Connect(t, url)
	for _, sql := range []string{"CREATE TABLE pg_dist_partition (logicalrelid regclass)", "INSERT INTO pg_dist_partition VALUES ('logs')"} {
		if _, err := db.Exec(context.Background(), sql); err != nil {
			t.Fatal(err)
		}
	}
	wantStatus(t, start(t, map[string]string{"POSTGRES_URL": string(url)}).base, "/logs/tail", http.StatusNotImplemented)
}

func TestATableOfAnotherProgramIsNamed(t *testing.T) {
	url := testenv.Database(t)
	if _, err := testenv.Connect(t, url).Exec(context.Background(), "CREATE TABLE logs (id bigserial PRIMARY KEY, line text); CREATE TABLE late_changes ()"); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, start(t, map[string]string{"POSTGRES_URL": string(url)}).base, "/logs", http.StatusServiceUnavailable)
}

// wantStatus waits until a path answers with a status.
func wantStatus(t *testing.T, base, path string, status int) {
	t.Helper()
	testenv.Eventually(t, 30*time.Second, path, func() bool {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		res, err := client.Get(base + path)
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == status
	})
}
