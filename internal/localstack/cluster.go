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

// givenUpAfter is the shortest time after which the other nodes may give up a node that hangs: three quarters of clusterConf's
// net_ticktime, and a moment less.
const givenUpAfter = 7 * time.Second

// Brokers returns the names of RabbitMQ's nodes, as Kill, Restart and Signal take them.
func (s *Stack) Brokers() []string { return slices.Clone(s.brokers) }

// BrokerURL returns the address of one of RabbitMQ's nodes, with user and password.
func (s *Stack) BrokerURL(name string) string { return s.url(name) }

// RabbitMQCtl runs rabbitmqctl on the first of RabbitMQ's nodes that runs. Its arguments may do anything: block publishers, close
// connections, stop the application. It takes a second or two.
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

// shield sets the policies that keep other policies from applying to Millrace's queues, those of the default name, logs. One run of
// rabbitmqctl sets all of them: a run takes half a second.
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

// Queue returns which node leads a quorum queue of the default virtual host, and which nodes have a part in it, as node knows it.
// A node that is cut off from the others may know no leader, or an old one.
func (s *Stack) Queue(ctx context.Context, node, queue string) (leader string, members []string, err error) {
	// RabbitMQ's list of queues may be out of date. The queue's own member knows.
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

// PausesMinorities reports whether a node that sees no majority of the nodes stops serving clients. It does so if RabbitMQ keeps its
// definitions in Mnesia. With Khepri, which 4.3 always has, such a node keeps its clients, and confirms and delivers nothing.
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

// Thaw lets a node go on that was stopped by SIGSTOP. If the others may have given it up meanwhile, its RabbitMQ application is
// restarted, as an operator would have to do. RabbitMQ before 4 connects to the others again so soon that it does not notice that
// it was alone. It goes on with a database of its own, which does not know which nodes lead the queues now.
func (s *Stack) Thaw(ctx context.Context, node string) error {
	srv, err := s.server(node)
	if err != nil {
		return err
	}
	l, ok := srv.(*localServer)
	if !ok || l.thaw() < givenUpAfter {
		return nil
	}
	for _, do := range []string{"stop_app", "start_app"} {
		if _, err := s.RabbitMQCtlOn(ctx, node, do); err != nil {
			return fmt.Errorf("%s on %s: %w", do, node, err)
		}
	}
	return nil
}

// eachPeer lets node evaluate an expression for each other node of its cluster. format gets the name of that node.
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
