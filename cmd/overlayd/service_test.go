package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestServiceOf(t *testing.T) {
	got := serviceOf(`C:\Program Files\zlayer\overlayd.exe`, `C:\ProgramData\zlayer\overlayd.yaml`)
	want := serviceSpec{
		name: "zlayer-overlayd", display: got.display, description: got.description, // for people
		program:  `C:\Program Files\zlayer\overlayd.exe`,
		args:     []string{"run", "--config", `C:\ProgramData\zlayer\overlayd.yaml`},
		restarts: []time.Duration{time.Second, 5 * time.Second, 30 * time.Second},
		forget:   time.Hour,
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(serviceSpec{})); diff != "" || got.display == "" || got.description == "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	// The last pause goes for all further failures, and the count must not begin
	// anew between two of them.
	if last := got.restarts[len(got.restarts)-1]; last >= got.forget {
		t.Errorf("failures %s apart are forgotten after %s", last, got.forget)
	}
	if cmd := newCommand(parent{}); commandOf(cmd.Commands(), got.args[0]) == nil {
		t.Errorf("there is no command %s to run", got.args[0])
	}
}

// commandOf returns the command of that name.
func commandOf[C interface{ Name() string }](commands []C, name string) any {
	for _, cmd := range commands {
		if cmd.Name() == name {
			return cmd
		}
	}
	return nil
}

// A service that waits for another daemon is neither up nor to be stopped.
func TestServiceTakesOverFromNobody(t *testing.T) {
	if err := checkServiceConfig(Config{}); err != nil {
		t.Error(err)
	}
	if err := checkServiceConfig(Config{Handover: true}); err == nil || !strings.Contains(err.Error(), "handover") {
		t.Errorf("error %v", err)
	}
}

// What the manager asks for is told by the one who tells all else, so that nothing
// that was true before comes after.
func TestFollowAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		asked := make(chan struct{}, 1)
		var got []stage
		told := supervision{interval: time.Hour, asked: asked, tell: func(now stage, _ uint32) { got = append(got, now) }}
		err := told.follow(ctx, func(ctx context.Context, answering func()) error {
			answering()
			synctest.Wait()
			asked <- struct{}{}
			synctest.Wait()
			cancel()
			<-ctx.Done()
			synctest.Wait()
			asked <- struct{}{}
			synctest.Wait()
			return nil
		})
		if err != nil || !slices.Equal(got, []stage{starting, running, running, stopping, stopping}) {
			t.Errorf("told %v, %v", got, err)
		}
	})
}

// daemonScript is a daemon that answers and ends when it is told to, or late
// after its context has.
type daemonScript struct {
	answers time.Duration // after its start; 0 is never
	ends    time.Duration // after its start; 0 is when it is told to
	takes   time.Duration // to end once told to
	err     error
}

func (d *daemonScript) run(ctx context.Context, answering func()) error {
	if d.answers > 0 {
		select {
		case <-time.After(d.answers):
			answering()
			answering() // as a daemon does that begins anew
		case <-ctx.Done():
		}
	}
	if d.ends > 0 {
		time.Sleep(d.ends - d.answers)
		return d.err
	}
	<-ctx.Done()
	time.Sleep(d.takes)
	return d.err
}

func TestFollow(t *testing.T) {
	broken := errors.New("broken")
	tests := []struct {
		name   string
		daemon daemonScript
		stop   time.Duration // after the start; 0 is never
		want   []string      // SECONDS STAGE STEP
	}{
		{
			"starts, runs, stops", daemonScript{answers: 5 * time.Second, takes: 3 * time.Second}, 60 * time.Second,
			[]string{"0 starting 1", "2 starting 2", "4 starting 3", "5 running 0", "60 stopping 1", "62 stopping 2"},
		},
		{"breaks at the start", daemonScript{ends: time.Second, err: broken}, 0, []string{"0 starting 1"}},
		{"breaks later", daemonScript{answers: time.Second, ends: 10 * time.Second, err: broken}, 0, []string{"0 starting 1", "1 running 0"}},
		{"is stopped while it starts", daemonScript{takes: time.Second / 2}, 3 * time.Second, []string{"0 starting 1", "2 starting 2", "3 stopping 1"}},
	}
	names := map[stage]string{starting: "starting", running: "running", stopping: "stopping"}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.stop > 0 {
					defer time.AfterFunc(tt.stop, cancel).Stop()
				}
				begin := time.Now()
				var got []string
				told := supervision{interval: 2 * time.Second, tell: func(now stage, step uint32) {
					got = append(got, fmt.Sprintf("%d %s %d", int(time.Since(begin).Seconds()), names[now], step))
				}}
				if err := told.follow(ctx, tt.daemon.run); !errors.Is(err, tt.daemon.err) {
					t.Errorf("error %v, want %v", err, tt.daemon.err)
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("told (-want +got):\n%s", diff)
				}
			})
		})
	}
}
