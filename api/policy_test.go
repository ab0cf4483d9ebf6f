package api

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"millrace/internal/config"
	"millrace/internal/testenv"
)

// TestAHarmfulPolicyIsNamedAndOneThatLosesRecordsIsRefused: /ready names the policy. While accepted records could
// vanish, the API accepts none.
func TestAHarmfulPolicyIsNamedAndOneThatLosesRecordsIsRefused(t *testing.T) {
	stack := testenv.Managed(t)
	ctl := func(args ...string) {
		t.Helper()
		if err := stack.RabbitMQCtl(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	b := config.Broker{URLs: config.Brokers(stack.RabbitMQURL), Shards: 1, Management: stack.RabbitMQManagement}
	a := startOn(t, b, func(c *Config) { c.policyInterval = 100 * time.Millisecond })
	post := func() response { return a.post(t, "/log", []byte(`{"a":1}`), nil) }
	ready := func() bool { return a.get(t, "/ready").status == http.StatusOK }
	testenv.Eventually(t, time.Minute, "the API is ready", ready)

	for _, tt := range []struct {
		definition, named string
		reason            string
		status            int
	}{
		{`{"message-ttl":3600000}`, "the operator policy harm sets message-ttl to 3600000", "message_ttl", http.StatusAccepted},
		{`{"expires":3600000}`, "the operator policy harm sets expires to 3600000", "expires", http.StatusServiceUnavailable},
	} {
		ctl("set_operator_policy", "harm", "^logs", tt.definition, "--apply-to", "queues")
		testenv.Eventually(t, time.Minute, "/ready names it", func() bool {
			r := a.get(t, "/ready")
			return r.status == http.StatusServiceUnavailable && strings.Contains(r.body, `"policies":"`) && strings.Contains(r.body, tt.named) && strings.Contains(r.body, "logs.0")
		})
		if r := post(); r.status != tt.status {
			t.Errorf("%s: got %d %s, want %d", tt.definition, r.status, r.body, tt.status)
		} else if tt.status != http.StatusAccepted && !strings.Contains(r.body, tt.named) {
			t.Errorf("got %s, want the reason", r.body)
		}
		testenv.Eventually(t, time.Minute, tt.reason+" is counted for the three queues", func() bool { // which may not show it at once
			return strings.Contains(a.get(t, "/metrics").body, `millrace_queue_policies_harmful{reason="`+tt.reason+`"} 3`)
		})
		ctl("clear_operator_policy", "harm")
		testenv.Eventually(t, time.Minute, "the API is ready again", ready)
		if r := post(); r.status != http.StatusAccepted {
			t.Errorf("got %d %s after the policy is gone, want 202", r.status, r.body)
		}
	}
	if m := a.get(t, "/metrics").body; !strings.Contains(m, `millrace_api_unavailable_total{reason="policy"} 1`) {
		t.Error("the refusal is not counted")
	}
}
