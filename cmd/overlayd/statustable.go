package main

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// printStatus writes a snapshot for people: what the node is, then a table of
// each kind of thing. now is what ages are counted from.
func printStatus(out io.Writer, s *shim.StatusSnapshot, now time.Time) error {
	page := &page{}
	page.head(s)
	page.peers(s.Peers, paths(s.NAT, now), now)
	page.refused(s.Peers)
	page.nat(s.NAT, now)
	page.dns(s.DNS)
	page.guests(s.Guests, now)
	page.services(s.DedicatedServices)
	page.servicePeers(s.DedicatedServices, now)
	page.segments(s.Segments)
	page.attachments(s.Attachments)
	page.pools(s.Pools)
	_, err := io.WriteString(out, page.text.String())
	return err
}

// page collects the text; writing to it cannot fail.
type page struct{ text strings.Builder }

// table writes rows in columns under a title with their number. Without rows
// it writes the title alone.
func (p *page) table(title string, header []string, rows [][]string) {
	fmt.Fprintf(&p.text, "\n%s (%d)\n", title, len(rows))
	if len(rows) > 0 {
		p.columns(append([][]string{header}, rows...))
	}
}

// columns aligns rows, indented by two.
func (p *page) columns(rows [][]string) {
	w := tabwriter.NewWriter(&trimmer{out: &p.text}, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		_, _ = io.WriteString(w, "  "+strings.Join(row, "\t")+"\n") // into a strings.Builder
	}
	_ = w.Flush()
}

// trimmer drops the blanks at the ends of lines. Its writer is given whole
// lines at the latest with the last call.
type trimmer struct {
	out  *strings.Builder
	rest string
}

func (t *trimmer) Write(text []byte) (int, error) {
	lines := strings.SplitAfter(t.rest+string(text), "\n")
	t.rest = lines[len(lines)-1]
	for _, line := range lines[:len(lines)-1] {
		t.out.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return len(text), nil
}

func (p *page) head(s *shim.StatusSnapshot) {
	ready := "yes"
	if !s.Ready {
		ready = "NO"
	}
	device := "none yet"
	if s.Interface != "" {
		device = fmt.Sprintf("%s, %s WireGuard, UDP port %d, MTU %d", s.Interface, s.Backend, s.ListenPort, s.MTU)
	}
	rows := [][]string{{"Node:", s.Node}, {"Ready:", ready}}
	for i, reason := range s.Waiting {
		label := ""
		if i == 0 && s.Ready {
			label = "Warning:"
		}
		if i == 0 && !s.Ready {
			label = "Waiting for:"
		}
		rows = append(rows, []string{label, strings.Join(strings.Fields(reason), " ")})
	}
	rows = append(rows, []string{"Device:", device}, []string{"Public key:", s.PublicKey})
	rows = append(rows, []string{"Addresses:", orDash(joinAll(s.NodeIPs))}, []string{"Slices:", orDash(joinAll(s.SliceCIDRs))},
		[]string{"Cluster:", orDash(joinAll(s.OverlayCIDRs))}, []string{"Version:", s.Version})
	w := tabwriter.NewWriter(&trimmer{out: &p.text}, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		_, _ = io.WriteString(w, strings.Join(row, "\t")+"\n")
	}
	_ = w.Flush()
}

// peers has a column for the paths if any is known.
func (p *page) peers(peers []shim.PeerStatus, paths map[string]string, now time.Time) {
	header := []string{"NODE", "ENDPOINT", "SLICES", "HANDSHAKE", "HEALTH", "RECEIVED", "SENT"}
	if paths != nil {
		header = append(header, "PATH")
	}
	var rows [][]string
	for _, peer := range peers {
		if peer.Problem != "" {
			continue
		}
		row := []string{
			orDash(peer.Node), orDash(peer.Endpoint), orDash(joinAll(peer.AllowedIPs)), age(peer.LastHandshakeUnixSecs, now),
			orDash(peer.Health), traffic(peer.RxBytes), traffic(peer.TxBytes),
		}
		if paths != nil {
			row = append(row, orDash(paths[peer.PublicKey]))
		}
		rows = append(rows, row)
	}
	p.table("PEERS", header, rows)
}

// refused is there only if there is something to tell.
func (p *page) refused(peers []shim.PeerStatus) {
	var rows [][]string
	for _, peer := range peers {
		if peer.Problem != "" {
			rows = append(rows, []string{orDash(peer.Node), peer.Problem})
		}
	}
	if len(rows) > 0 {
		p.table("NOT PEERS", []string{"NODE", "BECAUSE"}, rows)
	}
}

// guests is there only if there are any.
func (p *page) guests(guests []shim.GuestStatus, now time.Time) {
	if rows := guestRows(guests, now); len(guests) > 0 {
		p.table("GUESTS", rows[0], rows[1:])
	}
}

// services is there only if there are any.
func (p *page) services(services []shim.DedicatedServiceStatus) {
	var rows [][]string
	for _, s := range services {
		reach := "all"
		if !s.JoinGlobal {
			reach = "itself"
		}
		rows = append(rows, []string{
			s.Service, s.Interface, strconv.Itoa(int(s.ListenPort)), joinAll(s.Subnets), reach, strconv.Itoa(s.Attachments), orDash(s.Problem),
		})
	}
	if len(rows) > 0 {
		p.table("DEDICATED SERVICES", []string{"SERVICE", "DEVICE", "UDP PORT", "BLOCKS", "REACHES", "PORTS", "PROBLEM"}, rows)
	}
}

// servicePeers is there only if there are any.
func (p *page) servicePeers(services []shim.DedicatedServiceStatus, now time.Time) {
	var rows [][]string
	for _, s := range services {
		for _, peer := range s.Peers {
			rows = append(rows, []string{
				s.Service, orDash(peer.Node), orDash(peer.Endpoint), orDash(joinAll(peer.AllowedIPs)), age(peer.LastHandshakeUnixSecs, now),
				traffic(peer.RxBytes), traffic(peer.TxBytes), orDash(peer.Problem),
			})
		}
	}
	if len(rows) > 0 {
		p.table("PEERS OF SERVICES", []string{"SERVICE", "NODE", "ENDPOINT", "BLOCKS", "HANDSHAKE", "RECEIVED", "SENT", "PROBLEM"}, rows)
	}
}

func (p *page) segments(segments []shim.SegmentStatus) {
	var rows [][]string
	for _, segment := range segments {
		rows = append(rows, []string{segment.Name, segment.Bridge, strconv.Itoa(segment.Ports)})
	}
	slices.SortFunc(rows, compareRows)
	p.table("SEGMENTS", []string{"NAME", "BRIDGE", "PORTS"}, rows)
}

func (p *page) attachments(attachments []shim.AttachmentStatus) {
	var rows [][]string
	for _, a := range attachments {
		rows = append(rows, []string{
			shortID(cmp.Or(a.ContainerID, a.Key)), orDash(a.IfName), a.Segment, joinAll(a.Addresses), a.HostInterface,
		})
	}
	slices.SortFunc(rows, compareRows)
	p.table("ATTACHMENTS", []string{"CONTAINER", "INTERFACE", "SEGMENT", "ADDRESSES", "PORT"}, rows)
}

func (p *page) pools(pools []shim.PoolStatus) {
	var rows [][]string
	for _, pool := range pools {
		rows = append(rows, []string{pool.Prefix.String(), count(pool.Capacity), strconv.Itoa(pool.Used), strconv.Itoa(pool.Resting)})
	}
	p.table("ADDRESS POOLS", []string{"SLICE", "ADDRESSES", "USED", "RESTING"}, rows)
}

func compareRows(a, b []string) int { return slices.Compare(a, b) }

// idLength is how much of a container ID tells containers apart; crictl shows
// as much.
const idLength = 13

func shortID(id string) string {
	if len(id) > 2*idLength {
		return id[:idLength]
	}
	return id
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func joinAll[T netip.Addr | netip.Prefix](list []T) string {
	texts := make([]string, len(list))
	for i, item := range list {
		texts[i] = fmt.Sprint(item)
	}
	return strings.Join(texts, " ")
}

// age tells how long ago a moment was, in at most two units.
func age(unix int64, now time.Time) string {
	if unix == 0 {
		return "never"
	}
	seconds := max(0, now.Unix()-unix)
	const minute, hour, day = 60, 60 * 60, 24 * 60 * 60
	switch {
	case seconds < minute:
		return fmt.Sprintf("%ds ago", seconds)
	case seconds < hour:
		return fmt.Sprintf("%dm%ds ago", seconds/minute, seconds%minute)
	case seconds < day:
		return fmt.Sprintf("%dh%dm ago", seconds/hour, seconds%hour/minute)
	default:
		return fmt.Sprintf("%dd%dh ago", seconds/day, seconds%day/hour)
	}
}

// traffic writes a number of bytes in the largest unit it fills.
func traffic(bytes uint64) string {
	if bytes < 1<<10 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		value /= 1 << 10
		if value < 1<<10 {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}

// count writes a number of addresses; those of an IPv6 slice are beyond
// reading.
func count(n uint64) string {
	const readable = 1 << 32
	if n >= readable {
		return "over 4 billion"
	}
	return strconv.FormatUint(n, 10)
}
