package nat

import "container/heap"

// queue holds the peers for which something will be due, the next one first.
type queue []*peer

// put has p in the queue if it has a time to wake, and else not.
func (q *queue) put(p *peer) {
	switch {
	case p.wake.IsZero():
		q.remove(p)
	case p.index < 0:
		heap.Push(q, p)
	default:
		heap.Fix(q, p.index)
	}
}

// remove takes p out, if it is in.
func (q *queue) remove(p *peer) {
	if p.index >= 0 {
		heap.Remove(q, p.index)
	}
}

// Len is for package heap.
func (q queue) Len() int { return len(q) }

// Less is for package heap.
func (q queue) Less(i, j int) bool { return q[i].wake.Before(q[j].wake) }

// Swap is for package heap.
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push is for package heap.
func (q *queue) Push(x any) {
	p := x.(*peer)
	p.index = len(*q)
	*q = append(*q, p)
}

// Pop is for package heap.
func (q *queue) Pop() any {
	last := len(*q) - 1
	p := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	p.index = -1
	return p
}
