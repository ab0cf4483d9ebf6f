package localstack

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/policy"
)

// givenUp is after how long a node that hangs may be given up by the others, at the earliest: three quarters of
// clusterConf's net_ticktime, and a moment less.
const givenUp = 7 * time.Second

// Brokers returns the names of RabbitMQ's nodes, as Kill, Restart and Signal take them.
func (s *Stack) Brokers() []string { return slices.Clone(s.brokers) }

// BrokerURL is the address of one of RabbitMQ's nodes.
func (s *Stack) BrokerURL(name string) string { return s.url(name) }

// RabbitMQCtl runs rabbitmqctl on the private RabbitMQ, the first node that runs, whatever its arguments do: they may
// block publishers, close connections, or stop the application. It takes a second or two.
func (s *Stack) RabbitMQCtl(ctx context.Context, args ...string) error {
	err := errDown
	for _, name := range s.brokers {
		if _, err = s.RabbitMQCtlOn(ctx, name, args...); !errors.Is(err, errDown) {
			return err
		}
	}
	return err
}

// RabbitMQCtlOn runs rabbitmqctl on one of RabbitMQ's nodes and returns what it wrote.
func (s *Stack) RabbitMQCtlOn(ctx context.Context, name string, args ...string) (string, error) {
	srv, err := s.server(name)
	if err != nil {
		return "", err
	}
	return srv.control(ctx, args...)
}

// shield sets the policies that keep others from applying to Millrace's queues, those of the name logs. Both are set by
// one run of rabbitmqctl, which takes half a second.
func (s *Stack) shield(ctx context.Context) error {
	var expr strings.Builder
	for _, p := range policy.Shields(broker.NewTopology(config.Broker{})) {
		definition := make([]string, 0, 1)
		for key, value := range p.Definition {
			definition = append(definition, fmt.Sprintf("{<<%q>>, <<%q>>}", key, value))
		}
		fmt.Fprintf(&expr, "ok = rabbit_policy:set(<<\"/\">>, <<%q>>, <<%q>>, [%s], %d, <<%q>>, <<\"millrace\">>), ",
			p.Name, p.Pattern, strings.Join(definition, ", "), p.Priority, p.ApplyTo)
	}
	return s.RabbitMQCtl(ctx, "eval", expr.String()+"ok.")
}

// Queue returns which node leads a quorum queue of the default virtual host, and which have a part in it. It asks the
// node that is named, of which the answer is: one that is cut off from the others may know no leader, or an old one.
func (s *Stack) Queue(ctx context.Context, node, queue string) (leader string, members []string, err error) {
	// What RabbitMQ lists is what was written down last; the queue's own member knows.
	out, err := s.RabbitMQCtlOn(ctx, node, "eval", fmt.Sprintf("ra:members({'%%2F_%s', node()}, 5000).", queue))
	if err != nil {
		return "", nil, err
	}
	m := raftMembers.FindStringSubmatch(out)
	if m == nil {
		return "", nil, fmt.Errorf("queue %s on %s: %s", queue, node, strings.TrimSpace(out))
	}
	for _, n := range raftMember.FindAllStringSubmatch(m[1], -1) {
		members = append(members, rabbitmq+n[1])
	}
	slices.Sort(members)
	return rabbitmq + raftMember.FindStringSubmatch(m[2])[1], members, nil
}

var (
	// raftMembers matches {ok,[{'%2F_q','millrace-1@localhost'},…],{'%2F_q','millrace-2@localhost'}}.
	raftMembers = regexp.MustCompile(`(?s)\{ok,\s*\[(.*)\],\s*(\{.*\})\}`)
	raftMember  = regexp.MustCompile(`millrace(-\d+)?@localhost`)
)

// PausesMinorities reports whether a node that sees no majority of the others stops serving clients. It does not where
// RabbitMQ keeps its definitions in Khepri, as 4.3 always does, in the place of Mnesia: it then keeps its clients, and
// confirms and delivers nothing.
func (s *Stack) PausesMinorities(ctx context.Context) (bool, error) {
	khepri, err := s.RabbitMQCtlOn(ctx, s.brokers[0], "eval", "rabbit_feature_flags:is_enabled(khepri_db).")
	return strings.TrimSpace(khepri) != "true", err
}

// Isolate cuts a node off from the others, as a network would: its connections to them end, and it neither makes nor
// takes new ones until Rejoin. Clients reach it as before.
func (s *Stack) Isolate(ctx context.Context, node string) error {
	return s.eachPeer(ctx, node, `erlang:set_cookie(%[1]s, cut), erlang:disconnect_node(%[1]s), `)
}

// Rejoin ends what Isolate began.
func (s *Stack) Rejoin(ctx context.Context, node string) error {
	return s.eachPeer(ctx, node, `erlang:set_cookie(%[1]s, erlang:get_cookie()), net_kernel:connect_node(%[1]s), `)
}

// Thaw lets a node go on that was stopped by SIGSTOP. When the others may have given it up meanwhile, its RabbitMQ
// application is restarted, as an operator has to do: RabbitMQ before 4 connects to the others again so soon that it does
// not see that it was alone, and goes on with a database of its own, which knows nothing of who leads the queues since.
func (s *Stack) Thaw(ctx context.Context, node string) error {
	srv, err := s.server(node)
	if err != nil {
		return err
	}
	l, ok := srv.(*localServer)
	if !ok || l.thaw() < givenUp {
		return nil
	}
	for _, do := range []string{"stop_app", "start_app"} {
		if _, err := s.RabbitMQCtlOn(ctx, node, do); err != nil {
			return fmt.Errorf("%s on %s: %w", do, node, err)
		}
	}
	return nil
}

// eachPeer has node evaluate an expression for the name of each other node of its cluster.
func (s *Stack) eachPeer(ctx context.Context, node, format string) error {
	var expr strings.Builder
	for i, name := range s.brokers {
		if name != node {
			fmt.Fprintf(&expr, format, "'"+rabbitNode(i+1)+"'")
		}
	}
	_, err := s.RabbitMQCtlOn(ctx, node, "eval", expr.String()+"ok.")
	return err
}
