//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// matrix holds the round trips between pods, by sender, receiver and family.
type matrix struct {
	pods  []*cluster.Pod
	times [][][2]time.Duration // [from][to][IPv4, IPv6]
	// answered counts echo requests that were answered, again those that had to
	// be sent a second time before.
	answered, again int
	// between counts the answered ones whose pods are on different nodes.
	between int
}

// pingAll pings every pod from every pod, itself included, on both families.
func pingAll(ctx context.Context, pods []*cluster.Pod, payload []byte) (*matrix, error) {
	const patience = 30 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m := &matrix{pods: pods, times: make([][][2]time.Duration, len(pods))}
	for i, from := range pods {
		m.times[i] = make([][2]time.Duration, len(pods))
		for j, to := range pods {
			for family := range m.times[i][j] {
				if err := m.ping(ctx, [2]int{i, j}, family, payload); err != nil {
					return nil, fmt.Errorf("from pod %s to pod %s: %w", from.Name, to.Name, err)
				}
			}
		}
	}
	return m, nil
}

// ping sends two echoes and notes the second's round trip: the first one may
// wait for neighbours and for WireGuard's handshake.
func (m *matrix) ping(ctx context.Context, pair [2]int, family int, payload []byte) error {
	from, to := m.pods[pair[0]], m.pods[pair[1]]
	addr, err := to.Addr(family == 1)
	if err != nil {
		return err
	}
	p, err := openPinger(from.NS, addr, payload)
	if err != nil {
		return err
	}
	defer func() { _ = p.close() }()
	for range 2 {
		took, attempts, err := p.echo(ctx)
		if err != nil {
			return err
		}
		m.times[pair[0]][pair[1]][family] = took
		m.answered++
		m.again += attempts - 1
		if from.Node != to.Node {
			m.between++
		}
	}
	return nil
}

// rows renders the matrix as a table.
func (m *matrix) rows() [][]string {
	head := []string{"from \\ to"}
	for _, pod := range m.pods {
		head = append(head, pod.Name)
	}
	rows := [][]string{head}
	for i, from := range m.pods {
		row := []string{from.Name}
		for j := range m.pods {
			took := m.times[i][j]
			row = append(row, milliseconds(took[0])+"/"+milliseconds(took[1]))
		}
		rows = append(rows, row)
	}
	return rows
}
