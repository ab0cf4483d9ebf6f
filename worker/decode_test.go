package worker

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/frame"
)

func TestEveryShardHasAStreamAndEveryStreamAQueue(t *testing.T) {
	for streams := 1; streams <= 8; streams++ {
		for shards := 1; shards <= 8; shards++ {
			covered := make(map[int]bool)
			for i := range streams {
				queues := streamQueues(i, streams, shards)
				if len(queues) == 0 {
					t.Errorf("stream %d of %d has none of %d queues", i, streams, shards)
				}
				for _, q := range queues {
					if q >= shards || streams <= shards && covered[q] {
						t.Errorf("stream %d of %d, %d queues: got queue %d", i, streams, shards, q)
					}
					covered[q] = true
				}
			}
			if len(covered) != shards {
				t.Errorf("%d streams cover %d of %d queues", streams, len(covered), shards)
			}
		}
	}
}

func TestPropertiesAreJSONThatPostgresTakes(t *testing.T) {
	o := origin{typ: "t\x00", messageID: "\xff", headers: amqp.Table{
		"bytes": []byte{0, 255}, "nan": math.NaN(), "nested": amqp.Table{"x\x00": []any{int64(1), nil, true}},
		"time": time.Unix(0, 0), "decimal": amqp.Decimal{Scale: 2, Value: 5},
	}}
	got, err := o.properties()
	if err != nil {
		t.Fatal(err)
	}
	var back map[string]any
	if err := json.Unmarshal(got, &back); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"type": "t\ufffd", "content_type": "", "content_encoding": "", "message_id": "\ufffd", "headers": map[string]any{
		"bytes": map[string]any{"base64": "AP8="}, "nan": "NaN", "nested": map[string]any{"x\ufffd": []any{1.0, nil, true}},
		"time": "1970-01-01T00:00:00Z", "decimal": "{2 5}",
	}}
	if diff := cmp.Diff(want, back); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTheDeadLetterOfAMessageHasTheSameIDAtEachDelivery(t *testing.T) {
	for name, m := range map[string]amqp.Publishing{
		"a frame":           aFrame(frame.NewBase(), 2),
		"with a message id": {MessageId: "m1", Body: []byte("[broken")},
	} {
		m.Body = m.Body[:len(m.Body)-1]
		d := amqp.Delivery{Type: m.Type, MessageId: m.MessageId, Headers: amqp.Table(m.Headers), Body: m.Body}
		a, b := decode(&d, "logs.0", time.Now()), decode(&d, "logs.0", time.Now())
		if len(a.dead) != 1 || a.dead[0].id != b.dead[0].id {
			t.Errorf("%s: got %v and %v", name, a.dead, b.dead)
		}
	}
}

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
			ids[l.id] = true
			if string(l.payload) == c.body {
				payloads = append(payloads, "WHOLE")
				if l.recordID.Valid {
					t.Errorf("%s: a message has a record id", name)
				}
				continue
			}
			payloads = append(payloads, string(l.payload))
		}
		if diff := cmp.Diff(c.payloads, payloads); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if len(ids) != len(it.dead) {
			t.Errorf("%s: ids are not distinct", name)
		}
	}
}
