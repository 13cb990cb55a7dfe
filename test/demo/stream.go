//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// streamInterval is short enough to see a pause of a few milliseconds.
const streamInterval = 5 * time.Millisecond

// streamResult is what became of a stream of pings.
type streamResult struct {
	Sent, Lost int
	// Gap is the longest time in which no request was answered, 0 if none was lost.
	Gap time.Duration
	// Slowest is the longest round trip.
	Slowest time.Duration
}

// stream pings at a short interval while something happens.
type stream struct {
	pinger *pinger

	mu    sync.Mutex // guards pings
	pings []onePing  // index is the sequence number
}

type onePing struct {
	sent time.Time
	took time.Duration // 0: no answer yet
}

// during pings all the while fn runs, and a little before and after.
func (s *stream) during(ctx context.Context, fn func(context.Context) error) (streamResult, error) {
	const margin = 200 * time.Millisecond
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group errgroup.Group
	sending, stopSending := context.WithCancel(ctx)
	defer stopSending()
	group.Go(func() error { return s.sendUntil(sending) })
	group.Go(func() error { return s.receiveUntil(ctx) })
	err := sleep(ctx, margin)
	if err == nil {
		err = fn(ctx)
	}
	if err == nil {
		err = s.settle(ctx)
	}
	stopSending()
	if err == nil {
		err = sleep(ctx, margin) // for the last answers
	}
	cancel()
	if err := errors.Join(err, group.Wait()); err != nil {
		return streamResult{}, err
	}
	return s.result(), nil
}

// settle waits until requests are answered again.
func (s *stream) settle(ctx context.Context) error {
	const patience = 20 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for from := time.Now(); !s.answeredSince(from); {
		if err := sleep(ctx, streamInterval); err != nil {
			return fmt.Errorf("pings to %v are not answered again within %v", s.pinger.target, patience)
		}
	}
	return nil
}

// answeredSince tells whether a fair number of the requests sent after from
// were answered.
func (s *stream) answeredSince(from time.Time) bool {
	const many = 20
	s.mu.Lock()
	defer s.mu.Unlock()
	answers := 0
	for _, ping := range s.pings {
		if ping.sent.After(from) && ping.took > 0 {
			answers++
		}
	}
	return answers >= many
}

func (s *stream) sendUntil(ctx context.Context) error {
	tick := time.NewTicker(streamInterval)
	defer tick.Stop()
	for {
		s.mu.Lock()
		sequence := len(s.pings)
		s.pings = append(s.pings, onePing{sent: time.Now()})
		s.mu.Unlock()
		// An unreachable network is a lost ping, not the end of the stream.
		_ = s.pinger.send(uint16(sequence))
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *stream) receiveUntil(ctx context.Context) error {
	if err := s.pinger.conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.pinger.conn.SetReadDeadline(time.Now()) })
	defer stop()
	for {
		sequence, err := s.pinger.receive()
		switch {
		case ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			continue // an ICMP error that came back: the request counts as lost
		}
		s.answered(int(sequence))
	}
}

func (s *stream) answered(sequence int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sequence < len(s.pings) && s.pings[sequence].took == 0 {
		s.pings[sequence].took = time.Since(s.pings[sequence].sent)
	}
}

func (s *stream) result() streamResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := streamResult{Sent: len(s.pings)}
	var silentSince time.Time
	for _, ping := range s.pings {
		if ping.took == 0 {
			r.Lost++
			if silentSince.IsZero() {
				silentSince = ping.sent
			}
			continue
		}
		r.Slowest = max(r.Slowest, ping.took)
		if !silentSince.IsZero() {
			r.Gap = max(r.Gap, ping.sent.Sub(silentSince))
			silentSince = time.Time{}
		}
	}
	return r
}

// sleep waits for d, or less if ctx ends, whose error it returns then.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
