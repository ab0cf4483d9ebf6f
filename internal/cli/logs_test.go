package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// TestAFieldOfTheLogHasOneTypeInAllServices matters for stores of logs that fix a field's type at the first line, and refuse
// lines with another.
func TestAFieldOfTheLogHasOneTypeInAllServices(t *testing.T) {
	types := make(map[string]map[string]string) // by field and type, a line that has it
	for _, service := range []string{"api", "worker", "query"} {
		settings := unreachable()
		settings["LOG_FORMAT"], settings["PPROF_ADDR"] = "json", "127.0.0.1:0"
		if service == "worker" { // it says where it listens once it has the database
			settings["POSTGRES_URL"] = string(testenv.Database(t))
		}
		p := testenv.StartMillrace(t, t.TempDir(), environment(settings), service)
		testenv.Eventually(t, 30*time.Second, service+" listens and logs what it can't reach", func() bool {
			return strings.Count(p.Out.String(), `"address":`) >= 2 && strings.Contains(p.Out.String(), "refused")
		})
		p.Signal(t, os.Interrupt)
		for line := range strings.SplitSeq(strings.TrimSpace(ended(t, p)), "\n") {
			var fields map[string]any
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				t.Errorf("%s: not JSON: %s", service, line)
			}
			for name, value := range fields {
				if types[name] == nil {
					types[name] = make(map[string]string)
				}
				types[name][fmt.Sprintf("%T", value)] = line
			}
		}
	}
	for name, lines := range types {
		if len(lines) > 1 {
			t.Errorf("%s has %d types: %v", name, len(lines), lines)
		}
	}
	for _, name := range []string{"address", "error", "service", "level", "msg", "time"} {
		if _, ok := types[name]["string"]; !ok {
			t.Errorf("%s: got %v, want a string", name, types[name])
		}
	}
}
