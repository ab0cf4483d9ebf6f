package query

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// origins are the origins, beside the service's own, whose pages a browser lets read answers.
type origins []string

// parseOrigins returns the origins of the setting CORS_ORIGINS, or an error if one of them is no origin.
func parseOrigins(setting string) (origins, error) {
	if setting == "" {
		return nil, nil
	}
	var list origins
	for part := range strings.SplitSeq(setting, ",") {
		part = strings.TrimSpace(part)
		if strings.Contains(part, "@") { // the password after it is not shown
			return nil, errors.New("CORS_ORIGINS: takes origins such as https://grafana.example.com, without user and password")
		}
		if part != "*" {
			u, err := url.Parse(part)
			if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || part != u.Scheme+"://"+u.Host {
				return nil, fmt.Errorf("CORS_ORIGINS: got %q, takes origins such as https://grafana.example.com separated by commas, or *", part)
			}
		}
		list = append(list, part)
	}
	return list, nil
}

// allow sets the headers that let a page of another origin read the answer. If the request is a preflight, which has no key, it
// answers it. It reports whether it did.
func (o origins) allow(w http.ResponseWriter, r *http.Request) (done bool) {
	if len(o) == 0 {
		return false
	}
	h := w.Header()
	h.Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	switch {
	case origin == "":
		return false
	case slices.Contains(o, "*"):
		h.Set("Access-Control-Allow-Origin", "*")
	case slices.Contains(o, origin):
		h.Set("Access-Control-Allow-Origin", origin)
	default:
		return false
	}
	h.Set("Access-Control-Expose-Headers", "Retry-After, X-Cache")
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST")
	h.Set("Access-Control-Allow-Headers", "Authorization, X-API-Key, Last-Event-ID, Content-Type")
	h.Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
	return true
}
