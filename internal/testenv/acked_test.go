package testenv

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// complaints is a test that keeps its errors and does not fail.
type complaints struct {
	testing.TB
	errors []string
}

func (c *complaints) Errorf(format string, args ...any) {
	c.errors = append(c.errors, fmt.Sprintf(format, args...))
}

// TestCompareNamesWhatIsWrong has an API take records, refusing each request once, and then shows Compare what a faulty
// Millrace would have stored.
func TestCompareNamesWhatIsWrong(t *testing.T) {
	type row struct {
		id     uuid.UUID
		record string
	}
	var stored []row
	tries := make(map[string]int)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Idempotency-Key")
		if tries[key]++; tries[key] == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var answer struct {
			IDs []uuid.UUID `json:"ids"`
		}
		for line := range strings.Lines(string(body)) {
			answer.IDs = append(answer.IDs, uuid.New())
			stored = append(stored, row{answer.IDs[len(answer.IDs)-1], strings.TrimSpace(line)})
		}
		w.WriteHeader(http.StatusAccepted)
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	defer api.Close()
	client := NewAcked(api.URL)
	client.IDs = true
	for n := range 2 {
		if !client.Post(t, fmt.Sprintf("0/%d/0", n), fmt.Sprintf("0/%d/1", n)) {
			t.FailNow()
		}
	}
	if client.Records() != 4 || client.Refused.Load() != 2 || client.Requests.Load() != 4 {
		t.Errorf("%d records acked in %d requests, %d of them refused; want 4, 4, 2", client.Records(), client.Requests.Load(), client.Refused.Load())
	}
	all := func(rows ...row) iter.Seq2[uuid.UUID, string] {
		return func(yield func(uuid.UUID, string) bool) {
			for _, r := range rows {
				if !yield(r.id, r.record) {
					return
				}
			}
		}
	}
	for name, tt := range map[string]struct {
		rows []row
		want string
	}{
		"all":        {stored, ""},
		"one lost":   {stored[1:], "0/0/0 was acked and is not stored"},
		"one twice":  {append(stored[:4:4], stored[0]), "0/0/0 is stored 2 times"},
		"a foreign":  {append(stored[:4:4], row{uuid.New(), ackedRecord("1/0/0")}), "which was not acked"},
		"one cut":    {append(stored[:3:3], row{stored[3].id, `{"name":"0/1/1","pad":"x"}`}), "which was not acked"},
		"another id": {append(stored[:3:3], row{uuid.New(), stored[3].record}), "under the id"},
	} {
		got := &complaints{TB: t}
		client.Compare(got, all(tt.rows...))
		if text := strings.Join(got.errors, "\n"); (tt.want == "") != (text == "") || !strings.Contains(text, tt.want) {
			t.Errorf("%s: got %q, want %q", name, text, tt.want)
		}
	}
}
