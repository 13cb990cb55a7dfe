package nat

// receive looks at a packet that came by a way. Whoever it is from has to have
// the key of a pair of nodes, or to answer what a server was asked.
func (e *engine) receive(in inbound) {
	m, err := Parse(in.packet)
	if err != nil || !in.from.IsValid() || e.isInside(in.from) {
		e.refused.Add(1)
		return
	}
	if m.Class == ClassRequest {
		e.request(in, m)
		return
	}
	if in.way == e.direct && e.refresh.servers.Deliver(in.from, m) {
		return
	}
	e.answer(in, m)
}

// request answers a peer's check.
func (e *engine) request(in inbound, m Message) {
	p := e.sender(m.Username)
	if p == nil || m.Verify(*p.pair) != nil || !p.replays.isNew(m.ID) {
		e.refused.Add(1)
		return
	}
	if !e.has(in.way) {
		return
	}
	if err := in.reply(p.pair.Answer(m, in.from)); err != nil {
		e.log.Debug("check not answered", "node", p.Node, "remote", in.from, "err", err)
	}
	e.invite(p, path{in.way, in.from})
	e.step(p)
}

// reply sends a packet to where in came from, from where in went to (RFC 8445,
// 7.3).
func (in inbound) reply(packet []byte) error {
	if way, is := in.way.(Homed); is && in.at.IsValid() {
		return way.SendFrom(packet, in.at, in.from)
	}
	return in.way.Send(packet, in.from)
}

// answer takes in a peer's answer, which has to come by the path that the check
// took.
func (e *engine) answer(in inbound, m Message) {
	a, known := e.asked[m.ID]
	if !known || a.path != (path{in.way, in.from}) || m.Class != ClassSuccess || m.Verify(*a.peer.pair) != nil {
		e.refused.Add(1)
		return
	}
	delete(e.asked, m.ID)
	e.answers.Add(1)
	if e.peers[a.peer.Key] != a.peer {
		return
	}
	e.answered(a.peer, a.path, e.now.Sub(a.at), m.Mapped)
	e.step(a.peer)
}

// check asks a peer by a path. Nobody but the peer can answer.
func (e *engine) check(p *peer, x path) {
	e.forgetAsked()
	id := NewCheckID(e.now)
	e.asked[id] = asked{p, x, e.now}
	e.askedOrder = append(e.askedOrder, id)
	if err := x.way.Send(p.pair.Request(id), x.remote); err != nil {
		e.log.Debug("check not sent", "node", p.Node, "remote", x.remote, "err", err)
		return
	}
	e.sent.Add(1)
}

// forgetAsked forgets checks that were not answered in time.
func (e *engine) forgetAsked() {
	n := 0
	for _, id := range e.askedOrder {
		if a, waits := e.asked[id]; waits && e.now.Sub(a.at) < answerTime {
			break
		}
		delete(e.asked, id)
		n++
	}
	e.askedOrder = e.askedOrder[n:]
}
