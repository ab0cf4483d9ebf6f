package query

import (
	_ "embed"
	"net/http"
)

// openAPI describes every route and parameter. A test compares it with the handlers.
//
//go:embed openapi.json
var openAPI []byte

// getOpenAPI answers GET /openapi.json.
func (s *server) getOpenAPI(w http.ResponseWriter, r *http.Request) error {
	if _, err := parseParameters(r.URL.RawQuery, nil); err != nil {
		return err
	}
	return s.writeJSON(w, r, openAPI)
}
