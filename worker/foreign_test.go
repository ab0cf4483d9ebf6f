package worker

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/frame"
)

func TestRefusedRecordsAreCutOutOrTheMessageIsKept(t *testing.T) {
	cases := map[string]struct {
		body     string
		stored   int
		payloads []string
	}{
		"lines":                  {"{\"a\":1}\n{\"b\":\"\\u0000\"}\n{oops\n\n", 1, []string{`{"b":"\u0000"}`, "{oops"}},
		"a line that is a list":  {"{\"a\":1}\n{\"b\":\"\\u0000\"}\n[1]\n", 1, []string{"WHOLE"}},
		"a record in a record":   {"{\"a\":1}\n{\"b\":[\n{\"c\":\"\\u0000\"}\n]}\n", 1, []string{"WHOLE"}},
		"an array on one line":   {`[{"a":1},{"b":"\u0000"},{"c":"\u0000"}]`, 1, []string{"WHOLE"}},
		"a record on more lines": {"{\"a\":1}\n{\n\"b\":\n\"\\u0000\"\n}", 1, []string{"WHOLE"}},
		"all refused":            {`[1,2`, 0, []string{"WHOLE"}},
	}
	for name, c := range cases {
		d := amqp.Delivery{MessageId: frame.NewBase().String(), Body: []byte(c.body)}
		it := decode(&d, "logs.0", time.Now())
		if got := records(it.segments); got != c.stored {
			t.Errorf("%s: got %d records, want %d", name, got, c.stored)
		}
		var payloads []string
		ids := make(map[uuid.UUID]bool)
		for _, l := range it.dead {
			ids[l.ID] = true
			if string(l.Payload) == c.body {
				payloads = append(payloads, "WHOLE")
				if l.RecordID.Valid {
					t.Errorf("%s: a message has a record id", name)
				}
				continue
			}
			payloads = append(payloads, string(l.Payload))
		}
		if diff := cmp.Diff(c.payloads, payloads); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if len(ids) != len(it.dead) {
			t.Errorf("%s: ids are not distinct", name)
		}
	}
}
