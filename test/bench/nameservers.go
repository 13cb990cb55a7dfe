//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/bench/records"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// nameLab is a machine that asks, and one for each server, on an underlay. The one
// that asks has half of the cores, all servers the other half, so that what asking
// costs is not taken from them.
type nameLab struct {
	fabric                  *netlab.Fabric
	client                  *netlab.NS
	dir, questions          string
	askerCores, serverCores []int
	servers                 []*nameServer
}

// nameServer is a program that answers.
type nameServer struct {
	name    string
	addr    netip.AddrPort
	process *cluster.Process
	output  *strings.Builder // to be read when the process has ended
}

// nameQuestions are enough that no server can learn them by heart.
const nameQuestions = 50_000

func newNameLab(dir string) (_ *nameLab, err error) {
	l := &nameLab{dir: dir, questions: filepath.Join(dir, "questions")}
	if l.askerCores, l.serverCores, err = halves(); err != nil {
		return nil, err
	}
	if l.fabric, err = netlab.NewFabric("names-underlay"); err != nil {
		return nil, err
	}
	l.client, err = l.fabric.Host("asker", netip.MustParsePrefix("172.31.0.1/24"))
	if err == nil {
		err = writeFile(l.questions, func(file *os.File) error { return records.WriteQuestions(file, nameCount, nameQuestions) })
	}
	if err != nil {
		return nil, errors.Join(err, l.fabric.Close())
	}
	return l, nil
}

// halves divides the cores that we may use. One core is for all.
func halves() (first, second []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, nil, fmt.Errorf("which cores there are: %w", err)
	}
	var cores []int
	for i := range len(set) * 64 { // bits of a word
		if set.IsSet(i) {
			cores = append(cores, i)
		}
	}
	if len(cores) == 1 {
		return cores, cores, nil
	}
	half := len(cores) / 2
	return cores[:half], cores[half : 2*half], nil
}

// onCores is a command in a namespace, on some cores alone.
func onCores(ctx context.Context, ns *netlab.NS, cores []int, name string, args ...string) *exec.Cmd {
	cmd := ns.Command(ctx, "taskset", append([]string{"-c", coreList(cores), name}, args...)...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS="+strconv.Itoa(len(cores)))
	return cmd
}

func coreList(cores []int) string {
	list := make([]string, len(cores))
	for i, core := range cores {
		list[i] = strconv.Itoa(core)
	}
	return strings.Join(list, ",")
}

// serve starts a program on a machine of its own, and returns when it answers.
// command is given where to listen.
func (l *nameLab) serve(ctx context.Context, name string, command func(listen netip.AddrPort) ([]string, error)) (*nameServer, error) {
	number := len(l.servers) + 1
	addr := netip.AddrFrom4([4]byte{172, 31, 0, byte(1 + number)})
	ns, err := l.fabric.Host(fmt.Sprintf("server-%d", number), netip.PrefixFrom(addr, 24))
	if err != nil {
		return nil, err
	}
	s := &nameServer{name: name, addr: netip.AddrPortFrom(addr, 53), output: &strings.Builder{}}
	argv, err := command(s.addr)
	if err != nil {
		return nil, fmt.Errorf("configure %s: %w", name, err)
	}
	cmd := onCores(ctx, ns, l.serverCores, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = s.output, s.output
	if s.process, err = cluster.Start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	l.servers = append(l.servers, s)
	if err := l.awaitAnswer(ctx, s); err != nil {
		_ = s.process.Cmd.Process.Kill()
		_ = s.process.Wait()
		return nil, fmt.Errorf("%s does not answer: %w: %s", name, err, s.output)
	}
	return s, nil
}

// awaitAnswer asks until there is an answer.
func (l *nameLab) awaitAnswer(ctx context.Context, s *nameServer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		_, err := l.ask(s, records.Pods(nameCount)[0].Service+"."+records.Zone, dns.TypeA)
		if err == nil {
			return nil
		}
		if late := pause(ctx, 50*time.Millisecond); late != nil {
			return errors.Join(late, err)
		}
	}
}

// ask asks one question.
func (l *nameLab) ask(s *nameServer, name string, kind uint16) (*dns.Msg, error) {
	const patience = 2 * time.Second
	var conn net.Conn
	err := l.client.Do(func() (err error) {
		conn, err = net.Dial("udp", s.addr.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	client := dns.Client{Timeout: patience}
	reply, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(name, kind), &dns.Conn{Conn: conn})
	return reply, err
}

// agree fails if two servers answer some of the questions differently: then there is
// nothing to compare.
func (l *nameLab) agree(a, b *nameServer) error {
	const questions = 200
	text, err := os.ReadFile(l.questions)
	if err != nil {
		return err
	}
	for _, line := range strings.SplitN(string(text), "\n", questions+1)[:questions] {
		name, kind, _ := strings.Cut(line, " ")
		var answers [2]string
		for i, s := range []*nameServer{a, b} {
			reply, err := l.ask(s, name, dns.StringToType[kind])
			if err != nil {
				return fmt.Errorf("ask %s for %s: %w", s.name, line, err)
			}
			answers[i] = digest(reply)
		}
		if answers[0] != answers[1] {
			return fmt.Errorf("%s: %s answers\n%s%s\n%s", line, a.name, answers[0], b.name, answers[1])
		}
	}
	return nil
}

// digest is what matters of an answer: the records in order, since servers rotate them.
func digest(reply *dns.Msg) string {
	lines := make([]string, 0, len(reply.Answer)+len(reply.Ns))
	for _, record := range reply.Answer {
		lines = append(lines, record.String())
	}
	if len(reply.Answer) == 0 {
		for _, record := range reply.Ns { // some add the name servers to answers
			lines = append(lines, dns.TypeToString[record.Header().Rrtype])
		}
	}
	slices.Sort(lines)
	return cmp.Or(dns.RcodeToString[reply.Rcode], "?") + "\n" + strings.Join(lines, "\n") + "\n"
}

func (s *nameServer) pid() int { return s.process.Cmd.Process.Pid }

// stop ends a server.
func (s *nameServer) stop() error {
	_ = s.process.Cmd.Process.Signal(unix.SIGTERM) // or it has ended
	if err := s.process.Wait(); err != nil {
		return fmt.Errorf("%s: %w: %s", s.name, err, s.output)
	}
	return nil
}

// close ends what runs.
func (l *nameLab) close() error {
	var errs []error
	for _, s := range l.servers {
		errs = append(errs, s.stop())
	}
	return errors.Join(append(errs, l.fabric.Close())...)
}

func writeFile(path string, write func(*os.File) error) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(file), file.Close())
}
