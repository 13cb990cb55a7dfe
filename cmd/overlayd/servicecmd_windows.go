package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"
)

// serviceTimeout bounds the wait for a service to stop. It is longer than the
// daemon takes to answer what it has begun.
const serviceTimeout = time.Minute

func serviceCommands() []*cobra.Command {
	cmd := &cobra.Command{
		Use:   "service",
		Short: "Run the daemon as a Windows service",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(serviceInstallCommand(), serviceRemoveCommand())
	return []*cobra.Command{cmd}
}

func serviceInstallCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Make or update the service, which runs this program with a configuration file",
		Long: "Make the service " + serviceName + ", or update it to this program and this configuration file. It starts with the machine, as\n" +
			"LocalSystem, and again when it fails. Its log is in the event log Application. Needs an elevated administrator.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec, err := serviceHere(path)
			if err != nil {
				return err
			}
			if err := installService(spec); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "service %s is installed; Start-Service %s starts it, Restart-Service if it runs\n", spec.name, spec.name)
			return err
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration file (YAML) of the daemon")
	return cmd
}

// serviceHere is the service with this program. A mistake in the configuration is
// told now, since a service has nobody to tell it.
func serviceHere(path string) (serviceSpec, error) {
	if path == "" {
		return serviceSpec{}, errors.New("--config: not set")
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return serviceSpec{}, fmt.Errorf("--config: %w", err)
	}
	hostname, err := os.Hostname()
	if err != nil {
		return serviceSpec{}, err
	}
	config, err := loadConfig(absolute, pflag.NewFlagSet("service", pflag.ContinueOnError), hostname)
	if err == nil {
		err = checkServiceConfig(config)
	}
	if err != nil {
		return serviceSpec{}, err
	}
	program, err := os.Executable()
	if err != nil {
		return serviceSpec{}, fmt.Errorf("find this program: %w", err)
	}
	if err := checkTrusted(program, absolute); err != nil {
		return serviceSpec{}, err
	}
	return serviceOf(program, absolute), nil
}

// checkTrusted refuses a program and a configuration that others than
// administrators could put something else in the place of. Beside the program it
// looks for the libraries of drivers, whether they are there yet or not.
func checkTrusted(program, config string) error {
	folder := filepath.Dir(program)
	for _, path := range []string{program, config, folder, filepath.Join(folder, "wireguard.dll"), filepath.Join(folder, "wintun.dll")} {
		if err := checkWriters(path, rightsToWrite); err != nil {
			return err
		}
	}
	for _, path := range []string{program, config} {
		for folder := filepath.Dir(path); folder != filepath.Dir(folder); folder = filepath.Dir(folder) {
			if err := checkWriters(folder, rightsToReplace); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkWriters refuses a file or folder to which others have any of rights. One that
// is not there is fine.
func checkWriters(path string, rights uint32) error {
	have, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	switch {
	case errors.Is(err, windows.ERROR_FILE_NOT_FOUND), errors.Is(err, windows.ERROR_PATH_NOT_FOUND):
		return nil
	case err != nil:
		return fmt.Errorf("ask who may write to %s: %w", path, err)
	}
	others, err := writersOf(have.String(), rights)
	if err != nil {
		return fmt.Errorf("read who may write to %s: %w", path, err)
	}
	if len(others) > 0 {
		return fmt.Errorf("%s may be changed by %s, whose programs LocalSystem would run: put the program and its configuration where administrators alone may write, as in Program Files", path, strings.Join(others, ", "))
	}
	return nil
}

func serviceRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove",
		Short: "Stop and remove the service, which cuts this node's containers off from other nodes",
		Long: "Stop and remove the service. The WireGuard adapter goes with it: this node's containers reach those of other nodes no more until a\n" +
			"daemon runs again. The rest stays, also what keeps their packets from leaving in clear; overlayd teardown removes it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), serviceTimeout)
			defer cancel()
			found, err := removeService(ctx, serviceName)
			if err != nil {
				return err
			}
			said := "service %s was not there\n"
			if found {
				said = "removed service %s\n"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), said, serviceName)
			return err
		},
	}
}

// connectManager opens the service manager. Without elevation it opens nothing.
func connectManager() (*mgr.Mgr, error) {
	manager, err := mgr.Connect()
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) {
		return nil, fmt.Errorf("open service manager: %w (run this as an administrator, elevated)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open service manager: %w", err)
	}
	return manager, nil
}

// installService makes the service, or changes the one that is there.
func installService(spec serviceSpec) (err error) {
	manager, err := connectManager()
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, manager.Disconnect()) }()
	s, err := putService(manager, spec)
	if err != nil {
		return fmt.Errorf("install service %s: %w", spec.name, err)
	}
	defer func() { err = cmp.Or(err, s.Close()) }()
	if err := recoverService(s, spec); err != nil {
		return fmt.Errorf("install service %s: have it started again when it fails: %w", spec.name, err)
	}
	if err := eventlog.Remove(spec.name); err != nil && !errors.Is(err, windows.ERROR_FILE_NOT_FOUND) {
		return fmt.Errorf("install service %s: renew its source of events: %w", spec.name, err)
	}
	if err := eventlog.InstallAsEventCreate(spec.name, eventlog.Error|eventlog.Warning|eventlog.Info); err != nil {
		return fmt.Errorf("install service %s: make its source of events: %w", spec.name, err)
	}
	return nil
}

func putService(manager *mgr.Mgr, spec serviceSpec) (*mgr.Service, error) {
	s, err := manager.OpenService(spec.name)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		return manager.CreateService(spec.name, spec.program, mgr.Config{
			StartType: mgr.StartAutomatic, ErrorControl: mgr.ErrorNormal, DisplayName: spec.display, Description: spec.description,
		}, spec.args...)
	}
	if err != nil {
		return nil, err
	}
	config, err := s.Config()
	if err == nil {
		config.StartType, config.DelayedAutoStart, config.ErrorControl = mgr.StartAutomatic, false, mgr.ErrorNormal
		config.DisplayName, config.Description = spec.display, spec.description
		config.BinaryPathName = windows.ComposeCommandLine(append([]string{spec.program}, spec.args...))
		err = s.UpdateConfig(config)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// recoverService has the manager start the service again when it dies, and when
// it ends with an error.
func recoverService(s *mgr.Service, spec serviceSpec) error {
	actions := make([]mgr.RecoveryAction, len(spec.restarts))
	for i, pause := range spec.restarts {
		actions[i] = mgr.RecoveryAction{Type: mgr.ServiceRestart, Delay: pause}
	}
	if err := s.SetRecoveryActions(actions, uint32(spec.forget.Seconds())); err != nil {
		return err
	}
	return s.SetRecoveryActionsOnNonCrashFailures(true)
}

// removeService stops and removes the service and its source of events. It tells
// whether there was one; none is fine.
func removeService(ctx context.Context, name string) (found bool, err error) {
	manager, err := connectManager()
	if err != nil {
		return false, err
	}
	defer func() { err = cmp.Or(err, manager.Disconnect()) }()
	s, err := manager.OpenService(name)
	switch {
	case errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST):
	case err != nil:
		return false, fmt.Errorf("remove service %s: %w", name, err)
	default:
		found = true
		if err := errors.Join(stopAndDelete(ctx, s), s.Close()); err != nil {
			return found, fmt.Errorf("remove service %s: %w", name, err)
		}
	}
	if err := eventlog.Remove(name); err != nil && !errors.Is(err, windows.ERROR_FILE_NOT_FOUND) {
		return found, fmt.Errorf("remove service %s: its source of events: %w", name, err)
	}
	return found, nil
}

func stopAndDelete(ctx context.Context, s *mgr.Service) error {
	if err := stopService(ctx, s); err != nil {
		return fmt.Errorf("stop it: %w", err)
	}
	if err := s.Delete(); err != nil && !errors.Is(err, windows.ERROR_SERVICE_MARKED_FOR_DELETE) {
		return err
	}
	return nil
}

// stopService waits until the service has stopped. One that is starting takes no
// orders, and is asked again.
func stopService(ctx context.Context, s *mgr.Service) error {
	const interval = 200 * time.Millisecond
	for {
		status, err := s.Query()
		if err != nil {
			return err
		}
		if status.State == svc.Stopped {
			return nil
		}
		if status.State != svc.StopPending {
			_, err = s.Control(svc.Stop)
			if err != nil && !errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) && !errors.Is(err, windows.ERROR_SERVICE_CANNOT_ACCEPT_CTRL) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it does not end: %w", ctx.Err())
		case <-time.After(interval):
		}
	}
}
