package query

import (
	"encoding/json"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestTheDashboardOfSearchesAsksWhatTheServiceAnswers asks what the panels ask, their variables replaced as Grafana does, and takes the columns
// from the answers as its plugin does.
func TestTheDashboardOfSearchesAsksWhatTheServiceAnswers(t *testing.T) {
	file, err := os.ReadFile("../deploy/grafana/dashboards/searches.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct {
				URL          string
				RootSelector string `json:"root_selector"`
				Columns      []struct{ Selector, Type string }
			}
		}
	}
	if err := json.Unmarshal(file, &dashboard); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, nil)
	at := time.Now().Add(-time.Minute)
	partition(t, f.db, at)
	insert(t, f.db, at, 0, `{"level": "info", "duration_ms": 12.5, "message": "took 12 ms", "a b": "c&d"}`, `{"level": "error", "duration_ms": 3, "message": "took 3 ms", "a b": "c&d"}`, `{}`)
	variables := map[string]string{"__from": ms(at.Add(-time.Hour)), "__to": ms(at.Add(time.Hour)), "q": `"a b":"c&d"`, "by": "level", "number": "duration_ms"}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			path := regexp.MustCompile(`\$\{(\w+)(:percentencode)?\}`).ReplaceAllStringFunc(target.URL, func(v string) string {
				name, _, _ := strings.Cut(strings.Trim(v, "${}"), ":")
				value, known := variables[name]
				if !known {
					t.Fatalf("%s: no variable %s", panel.Title, name)
				}
				return url.QueryEscape(value)
			})
			var answer map[string]json.RawMessage
			f.ok(path, &answer)
			var rows []any
			if err := json.Unmarshal(answer[target.RootSelector], &rows); err != nil || len(rows) == 0 {
				t.Fatalf("%s: %s has no %s: %v", panel.Title, answer, target.RootSelector, err)
			}
			for _, column := range target.Columns {
				var value any
				for _, row := range rows { // the first that has one
					switch row := row.(type) {
					case map[string]any:
						value = row[column.Selector]
					case []any:
						i, err := strconv.Atoi(column.Selector)
						if err != nil || i >= len(row) {
							t.Fatalf("%s: no column %s in %v", panel.Title, column.Selector, row)
						}
						value = row[i]
					}
					if value != nil {
						break
					}
				}
				_, isNumber := value.(float64)
				text, isText := value.(string)
				_, err := time.Parse(time.RFC3339, text)
				if column.Type == "number" && !isNumber || column.Type == "string" && !isText || column.Type == "timestamp" && err != nil {
					t.Errorf("%s: column %s is %v, want a %s", panel.Title, column.Selector, value, column.Type)
				}
			}
		}
	}
}
