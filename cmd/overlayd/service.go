package main

import (
	"context"
	"errors"
	"sync"
	"time"
)

// serviceSpec is overlayd as a service of Windows, as data.
type serviceSpec struct {
	name, display, description string
	program                    string   // absolute path of the executable
	args                       []string // of the program
	// restarts are the pauses before the service is started again after it has
	// failed once, twice and more often.
	restarts []time.Duration
	// forget is how long without a failure makes the next one the first.
	forget time.Duration
}

// serviceName is not the original's (ZLayerDaemon-Overlayd): what removes that
// must not remove ours.
const serviceName = "zlayer-overlayd"

// serviceOf is the service that runs program with the configuration at path. It
// starts with the machine and at once: pods wait for it, and the delayed start
// of others takes minutes. It depends on no other service, not on HNS either: if
// HNS is restarted, the daemon has to repair what HNS has lost, not to end.
func serviceOf(program, path string) serviceSpec {
	return serviceSpec{
		name: serviceName, display: "ZLayer overlay network",
		description: "Connects this node's containers with those of other nodes, encrypted by WireGuard.",
		program:     program, args: []string{"run", "--config", path},
		restarts: []time.Duration{time.Second, 5 * time.Second, 30 * time.Second},
		forget:   time.Hour,
	}
}

// checkServiceConfig refuses what makes no sense of a service: the manager runs but
// one, and one that waits for another daemon's end takes no orders meanwhile.
func checkServiceConfig(config Config) error {
	if config.Handover {
		return errors.New("handover: a service takes over from no other daemon; end that first, and leave this out")
	}
	return nil
}

// stage is where a daemon is between its start and its end.
type stage int

const (
	starting stage = iota // not all requests are answered yet
	running
	stopping
)

// supervision is what a service manager has to do with a daemon.
type supervision struct {
	// tell is called with each new stage, and again, with a number that grows, as
	// long as the stage is one to wait in: a service that says nothing for long
	// is taken for dead.
	tell func(now stage, step uint32)
	// interval is how often that is.
	interval time.Duration
	// asked has something when the manager wants to be told again. It may be nil.
	asked <-chan struct{}
}

// follow runs the daemon until it ends, which the end of ctx has it do, and
// returns its error.
func (s supervision) follow(ctx context.Context, run func(ctx context.Context, answering func()) error) error {
	answering, ended := make(chan struct{}, 1), make(chan error, 1)
	tell := sync.OnceFunc(func() { answering <- struct{}{} })
	go func() { ended <- run(ctx, tell) }()
	ticker := time.NewTicker(s.interval)
	defer ticker.Stop()
	stop, now, step := ctx.Done(), starting, uint32(1)
	s.tell(now, step)
	for {
		select {
		case err := <-ended:
			return err
		case <-answering:
			if now != starting {
				continue
			}
			now, step = running, 0
		case <-stop:
			stop = nil
			now, step = stopping, 1
		case <-s.asked: // as it was
		case <-ticker.C:
			if now == running {
				continue
			}
			step++
		}
		s.tell(now, step)
	}
}
