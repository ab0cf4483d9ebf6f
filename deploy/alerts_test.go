package deploy

import (
	"strings"
	"testing"

	"millrace/query"
	"millrace/query/searches"
)

// TestTheFiveAlertsAreInOrder reads the file to begin with, and the example in the document.
func TestTheFiveAlertsAreInOrder(t *testing.T) {
	f, err := searches.ReadFile("deploy/searches.yaml", query.SearchTerms())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range f.Searches {
		if s.CountsAlone() || len(s.Tell) == 0 || s.Summary == "" {
			t.Errorf("%s has no condition, no receiver or no summary", s.Name)
		}
	}
	if len(f.Searches) != 5 {
		t.Errorf("got %d searches, want five", len(f.Searches))
	}
	_, example, _ := strings.Cut(readAll(t, "deploy/ALERTS.md"), "## The file\n\n")
	example, _, _ = strings.Cut(example, "\n\n")
	example = strings.NewReplacer("\n    ", "\n", "webhook_file: chat.url", "webhook: http://chat", "secret_file: chat.secret", "secret: 0123456789abcdef").Replace("\n" + example)
	if f, err := searches.Parse([]byte(example), t.TempDir(), query.SearchTerms()); err != nil || len(f.Searches) != 1 || len(f.Receivers) != 2 {
		t.Errorf("the example of ALERTS.md: %v, %+v\n%s", err, f, example)
	}
}
