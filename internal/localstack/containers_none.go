//go:build !containers

package localstack

import (
	"context"
	"errors"
)

// errNoContainers is the reason that no server runs in a container. The provider brings Docker's client with it, some 110 packages
// that a service never needs. So a program has it only if it was asked for.
var errNoContainers = errors.New("this program is built without the tag containers; " +
	"build it with MILLRACE_STACK=containers make build, or go build -tags containers")

func newContainers(context.Context, Options, func(error)) (provider, error) {
	return nil, errNoContainers
}
