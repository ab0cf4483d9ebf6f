package httpclient

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestAClientFollowsNoRedirect(t *testing.T) {
	server := httptest.NewServer(http.RedirectHandler("http://elsewhere.example/", http.StatusFound))
	defer server.Close()
	client, _ := New(10 * time.Second)
	resp, err := client.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusFound {
		t.Errorf("got %s, want the redirect itself", resp.Status)
	}
}

func TestAnErrorHasNoURL(t *testing.T) {
	client, _ := New(10 * time.Second)
	_, err := client.Get("http://user:secret@127.0.0.1:1/?q=private")
	if err == nil {
		t.Fatal("port 1 answers")
	}
	if text := WithoutURL(err).Error(); strings.Contains(text, "secret") || strings.Contains(text, "private") || !strings.Contains(text, "127.0.0.1:1") {
		t.Errorf("got %q", text)
	}
}
