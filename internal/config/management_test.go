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
	for value, want := range map[string]string{
		"http://a:15672": "there is no user:password@", "amqp://u:hidden@a/": "begins with none of http://, https://",
		"http://u:hidden@/": "there is no host", "u:hidden@a:15672": "begins with none of http://, https://",
		"http://u:hidden@a/?x=1": "parameter 1 is unknown", "http://u:hid#den@a/": "%23",
	} {
		err := LoadFrom(map[string]string{name: value}, new(Broker))
		if err == nil || !strings.HasPrefix(err.Error(), name+": ") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hid") {
			t.Errorf("%s: got %v, want a refusal that says %q, and no password", value, err, want)
		}
	}
}
