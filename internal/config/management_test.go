package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestManagementURLsHaveAUserAndNoMoreThanAPlace(t *testing.T) {
	const name = "RABBITMQ_MANAGEMENT_URL"
	var b Broker
	if err := LoadFrom(map[string]string{name: "http://u:p@a:15672/, https://u:p@b/mq"}, &b); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ManagementURLs{"http://u:p@a:15672", "https://u:p@b/mq"}, b.Management); diff != "" {
		t.Error(diff)
	}
	for _, value := range []string{"http://a:15672", "amqp://u:p@a/", "http://u:p@/", "u:p@a:15672", "http://u:p@a/?x=1"} {
		err := LoadFrom(map[string]string{name: value}, new(Broker))
		if err == nil || !strings.HasPrefix(err.Error(), name+": ") || !strings.Contains(err.Error(), "http:// or https:// URLs with user and password") {
			t.Errorf("%s: got %v, want a refusal that says what is taken", value, err)
		}
	}
}
