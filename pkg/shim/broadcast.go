package shim

import "sync"

// A Broadcaster passes events to every connection that subscribed. It never
// waits for one: each has a queue, and one that is full loses its oldest event
// and is told how many it lost. Safe for concurrent use.
type Broadcaster struct {
	limit int

	mu     sync.Mutex // guards queues
	queues map[*eventQueue]struct{}
}

// NewBroadcaster returns a Broadcaster whose subscribers may each be limit
// events behind, at least one.
func NewBroadcaster(limit int) *Broadcaster {
	return &Broadcaster{limit: max(limit, 1), queues: make(map[*eventQueue]struct{})}
}

// Publish hands event to everyone subscribed now. It must not change after.
func (b *Broadcaster) Publish(event Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for q := range b.queues {
		q.push(event)
	}
}

// subscribe returns a queue that receives what is published from now on.
func (b *Broadcaster) subscribe() *eventQueue {
	q := &eventQueue{limit: b.limit, filled: make(chan struct{}, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queues[q] = struct{}{}
	return q
}

func (b *Broadcaster) unsubscribe(q *eventQueue) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.queues, q)
}

// eventQueue is the events that one subscriber has yet to get.
type eventQueue struct {
	limit  int
	filled chan struct{} // holds a token when there may be something to take

	mu     sync.Mutex // guards what follows
	events []Event
	lost   uint64
}

func (q *eventQueue) push(event Event) {
	q.mu.Lock()
	if len(q.events) == q.limit {
		q.events = append(q.events[:0], q.events[1:]...)
		q.lost++
	}
	q.events = append(q.events, event)
	q.mu.Unlock()
	select {
	case q.filled <- struct{}{}:
	default:
	}
}

// take empties the queue. What was lost is told first.
func (q *eventQueue) take() []Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	events := q.events
	if q.lost > 0 {
		events = append([]Event{&Lost{Count: q.lost}}, events...)
	}
	q.events, q.lost = nil, 0
	return events
}
