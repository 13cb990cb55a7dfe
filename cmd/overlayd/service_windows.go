package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
)

const (
	// pendingInterval is how often a service tells that it is still starting or
	// stopping, and pendingHint what it says the next time may take.
	pendingInterval = 2 * time.Second
	pendingHint     = 10 * time.Second
)

// launch runs the program: for the service manager if that has started it, else
// for whoever is at the terminal. A HostProcess container is no service.
func launch(run func(context.Context, parent) error) error {
	managed, err := svc.IsWindowsService()
	if err != nil {
		return fmt.Errorf("find out who started this process: %w", err)
	}
	if !managed {
		return atTerminal(run)
	}
	return manage(run)
}

// manage runs the program as a service. The log goes to the event log, source
// serviceName: a service has no terminal, and of a file somebody would have to
// bound the size and guard the access, both of which the event log does.
func manage(run func(context.Context, parent) error) error {
	events, err := eventlog.Open(serviceName)
	if err != nil {
		return fmt.Errorf("open event log of %s: %w", serviceName, err)
	}
	s := &service{run: run, events: events}
	if err := svc.Run(serviceName, s); err != nil {
		_ = events.Error(eventID, fmt.Sprintf("run as a service: %v", err))
		return fmt.Errorf("run as a service: %w", err)
	}
	if err := events.Close(); err != nil {
		return fmt.Errorf("close event log of %s: %w", serviceName, err)
	}
	return nil
}

// service is the program for the service manager.
type service struct {
	run    func(context.Context, parent) error
	events *eventlog.Log
}

// Execute implements svc.Handler. A daemon that ends with an error ends with the
// code 1 of its own, which has the manager start it again.
func (s *service) Execute(_ []string, requests <-chan svc.ChangeRequest, statuses chan<- svc.Status) (ownCode bool, code uint32) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	asked := make(chan struct{}, 1)
	go obey(requests, asked, cancel) // as long as the process
	told := supervision{tell: func(now stage, step uint32) { statuses <- statusOf(now, step) }, interval: pendingInterval, asked: asked}
	err := told.follow(ctx, func(ctx context.Context, answering func()) error {
		return s.run(ctx, parent{out: io.Discard, log: io.Discard, events: s.events, answering: answering})
	})
	if err != nil {
		_ = s.events.Error(eventID, eventText([]byte(err.Error())))
		return true, 1
	}
	return false, 0
}

// obey does what the service manager asks for. Its questions it hands on: what was
// the answer when it asked may not be any more.
func obey(requests <-chan svc.ChangeRequest, asked chan<- struct{}, stop func()) {
	for request := range requests {
		switch request.Cmd {
		case svc.Interrogate:
			select {
			case asked <- struct{}{}:
			default: // it was asked already
			}
		case svc.Stop, svc.Shutdown:
			stop()
		}
	}
}

// statusOf is a stage in the manager's words. A service that has not started yet
// accepts nothing (SetServiceStatus): who stops it then is refused
// (ERROR_SERVICE_CANNOT_ACCEPT_CTRL) and has to ask again, see stopService.
func statusOf(now stage, step uint32) svc.Status {
	hint := uint32(pendingHint.Milliseconds())
	switch now {
	case starting:
		return svc.Status{State: svc.StartPending, CheckPoint: step, WaitHint: hint}
	case stopping:
		return svc.Status{State: svc.StopPending, CheckPoint: step, WaitHint: hint}
	}
	return svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown}
}
