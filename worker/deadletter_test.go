package worker

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/frame"
)

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
		if len(a.dead) != 1 || a.dead[0].ID != b.dead[0].ID {
			t.Errorf("%s: got %v and %v", name, a.dead, b.dead)
		}
	}
}
