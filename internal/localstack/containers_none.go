//go:build !containers

package localstack

import (
	"context"
	"errors"
)

// errNoContainers says why no server runs in a container. The provider brings Docker's client with it, some 110 packages
// that a service never needs, so a program has it only where it was asked for.
var errNoContainers = errors.New("this program is built without the tag containers; " +
	"build it with MILLRACE_STACK=containers make build, or go build -tags containers")

func newContainers(context.Context, Options, func(error)) (provider, error) {
	return nil, errNoContainers
}
