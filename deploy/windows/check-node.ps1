#Requires -Version 5.1
<#
.SYNOPSIS
Tells whether this Windows node can run overlayd, and what it lacks.

.DESCRIPTION
Looks at what overlayd needs of a node and changes nothing. Each line begins with
ok, WRONG or note; behind a WRONG stands what to do. Run it elevated.

Exit codes: 0 if nothing is wrong, 1 if something is.

.PARAMETER CniBinDir
The daemon's cniBinDir, which must be among containerd's bin_dirs.

.PARAMETER CniConfDir
The daemon's cniConfDir, which must be containerd's conf_dir.

.PARAMETER StateDir
The daemon's stateDir.

.PARAMETER ListenPort
The daemon's listenPort, WireGuard's UDP port.

.PARAMETER MetricsPort
The port of the daemon's metricsAddress, on 127.0.0.1.

.PARAMETER NamePorts
The daemon's dns.ports, on the node's overlay addresses; none where it serves no names.

.PARAMETER ProgramDir
The folder of overlayd.exe where it runs as a service. WireGuard's library is looked
for there, too. Left out, the daemon is taken to run from its image, which may hold
the library.

.EXAMPLE
PS> .\check-node.ps1

.EXAMPLE
PS> .\check-node.ps1 -ProgramDir 'C:\Program Files\zlayer'
#>
[CmdletBinding()]
param(
    [string] $CniBinDir = 'C:\opt\cni\bin',
    [string] $CniConfDir = 'C:\etc\cni\net.d',
    [string] $StateDir = 'C:\ProgramData\zlayer',
    [ValidateRange(1, 65535)]
    [int] $ListenPort = 51820,
    [ValidateRange(1, 65535)]
    [int] $MetricsPort = 9551,
    [int[]] $NamePorts = @(53, 15353),
    [string] $ProgramDir = ''
)

Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'

# The network that the daemon writes into CniConfDir.
$networkFile = '10-zlayer.conflist'
$system32 = [Environment]::SystemDirectory

# ConvertTo-Finding is one line of the answer.
function ConvertTo-Finding {
    [OutputType([pscustomobject])]
    param(
        [Parameter(Mandatory)] [ValidateSet('ok', 'WRONG', 'note')] [string] $State,
        [Parameter(Mandatory)] [string] $Text,
        [string] $Remedy = ''
    )
    [pscustomobject]@{ State = $State; Text = $Text; Remedy = $Remedy }
}

function Test-Elevation {
    $user = [Security.Principal.WindowsPrincipal]::new([Security.Principal.WindowsIdentity]::GetCurrent())
    if ($user.IsInRole([Security.Principal.WindowsBuiltInRole]::Administrator)) {
        return ConvertTo-Finding ok 'this PowerShell is elevated'
    }
    ConvertTo-Finding WRONG 'this PowerShell is not elevated, so that other lines may be wrong, too' 'run it as administrator'
}

function Test-Build {
    $version = Get-ItemProperty 'HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion'
    $build = [int] $version.CurrentBuildNumber
    $is = 'Windows build {0}.{1}, {2}' -f $build, $version.UBR, $version.InstallationType
    if ($build -lt 20348) {
        return ConvertTo-Finding WRONG "$is is older than Windows Server 2022" 'use Windows Server 2022 (build 20348) or 2025 (build 26100)'
    }
    if ($build -notin 20348, 26100 -or $version.InstallationType -notlike 'Server*') {
        return ConvertTo-Finding note "$is is neither Windows Server 2022 nor 2025, for which overlayd is written"
    }
    ConvertTo-Finding ok $is
}

function Test-ContainersFeature {
    $feature = Get-WindowsOptionalFeature -Online -FeatureName Containers
    if ($null -ne $feature -and "$($feature.State)" -eq 'Enabled') {
        return ConvertTo-Finding ok 'the feature Containers is enabled'
    }
    ConvertTo-Finding WRONG 'the feature Containers is not enabled' 'Enable-WindowsOptionalFeature -Online -FeatureName Containers -All, and start the node anew'
}

function Test-HyperV {
    $service = Get-Service -Name vmms -ErrorAction SilentlyContinue
    $is = if ($null -eq $service) { 'not installed' } else { 'installed' }
    ConvertTo-Finding ok "Hyper-V is $is, and overlayd does not need it"
}

# Test-HostService looks at a service of Windows that has to run.
function Test-HostService {
    param([string] $Name, [string] $Purpose, [string] $Absent)
    $service = Get-Service -Name $Name -ErrorAction SilentlyContinue
    if ($null -eq $service) {
        return ConvertTo-Finding WRONG "there is no service $Name, $Purpose" $Absent
    }
    if ("$($service.Status)" -ne 'Running') {
        return ConvertTo-Finding WRONG "the service $Name, $Purpose, is $($service.Status)" "Start-Service $Name"
    }
    ConvertTo-Finding ok "the service $Name, $Purpose, is running"
}

function Test-SystemLibrary {
    foreach ($library in @(
            @{ File = 'computenetwork.dll'; Purpose = 'by which networks are made (HCN)' },
            @{ File = 'bindfltapi.dll'; Purpose = 'by which HostProcess containers see their mounts' })) {
        if (Test-Path -LiteralPath (Join-Path $system32 $library.File)) {
            ConvertTo-Finding ok "$($library.File) is there, $($library.Purpose)"
        } else {
            ConvertTo-Finding WRONG "$($library.File) is missing, $($library.Purpose)" 'enable the feature Containers and install the latest updates of Windows'
        }
    }
}

# Get-Containerd returns the program and the configuration file of containerd's
# service, or nothing.
function Get-Containerd {
    $service = Get-CimInstance -ClassName Win32_Service -Filter "Name='containerd'"
    if ($null -eq $service -or $service.PathName -notmatch '^\s*(?:"(?<exe>[^"]+)"|(?<exe>.+?\.exe))') {
        return
    }
    $program = $Matches['exe']
    $config = Join-Path $env:ProgramFiles 'containerd\config.toml'
    if ($service.PathName -match '\s--?c(?:onfig)?[=\s]+(?:"(?<file>[^"]+)"|(?<file>\S+))') {
        $config = $Matches['file']
    }
    [pscustomobject]@{ Program = $program; Config = $config }
}

function Test-ContainerdVersion {
    param([pscustomobject] $Containerd)
    if ($null -eq $Containerd) {
        return
    }
    $said = "$(& $Containerd.Program --version)"
    if ($said -notmatch '\sv?(?<major>\d+)\.(?<minor>\d+)\.') {
        return ConvertTo-Finding note "containerd does not tell its version: $said"
    }
    if ([version]::new($Matches['major'], $Matches['minor']) -lt [version] '1.7') {
        return ConvertTo-Finding WRONG "containerd is too old for the mounts of HostProcess containers: $said" 'install containerd 1.7 or later'
    }
    ConvertTo-Finding ok $said
}

# ConvertTo-Comparable writes a folder as others that are the same are written.
function ConvertTo-Comparable {
    [OutputType([string])]
    param([string] $Folder)
    ($Folder -replace '[\\/]+', '\').TrimEnd('\').ToLowerInvariant()
}

# Get-TomlValue returns the texts that a key of a configuration in TOML has.
function Get-TomlValue {
    [OutputType([string])]
    param([string[]] $Lines, [string] $Key)
    foreach ($line in $Lines) {
        if ($line -match "^\s*$Key\s*=\s*(?<value>.*)$") {
            [regex]::Matches($Matches['value'], '"(?<text>[^"]*)"|''(?<text>[^'']*)''') | ForEach-Object { $_.Groups['text'].Value } | Where-Object { $_ }
        }
    }
}

function Test-ContainerdFolder {
    param([pscustomobject] $Containerd, [string] $BinDir, [string] $ConfDir)
    if ($null -eq $Containerd) {
        return
    }
    if (Test-Path -LiteralPath $Containerd.Config) {
        $lines = @(& $Containerd.Program --config $Containerd.Config config dump)
    } else {
        $lines = @(& $Containerd.Program config default)
    }
    foreach ($folder in @(
            @{ Key = 'bin_dirs?'; Name = 'bin_dirs (bin_dir before containerd 2.1)'; Want = $BinDir; Ours = 'cniBinDir' },
            @{ Key = 'conf_dir'; Name = 'conf_dir'; Want = $ConfDir; Ours = 'cniConfDir' })) {
        $have = @(Get-TomlValue -Lines $lines -Key $folder.Key)
        $want = ConvertTo-Comparable $folder.Want
        if (@($have | Where-Object { (ConvertTo-Comparable $_) -eq $want }).Count -gt 0) {
            ConvertTo-Finding ok "containerd's $($folder.Name) is the daemon's $($folder.Ours), $($folder.Want)"
        } else {
            ConvertTo-Finding WRONG "containerd's $($folder.Name) is $($have -join ', '), the daemon's $($folder.Ours) $($folder.Want)" `
                "write the one into the daemon's configuration or the other into $($Containerd.Config) and Restart-Service containerd"
        }
    }
}

function Test-OtherNetwork {
    param([string] $ConfDir)
    if (-not (Test-Path -LiteralPath $ConfDir)) {
        return ConvertTo-Finding ok "$ConfDir is not there yet; the daemon makes it"
    }
    $others = @(Get-ChildItem -LiteralPath $ConfDir -File |
            Where-Object { $_.Extension -in '.conf', '.conflist', '.json' -and $_.Name -ne $networkFile } | ForEach-Object { $_.Name })
    $before = @($others | Where-Object { [string]::CompareOrdinal($_, $networkFile) -lt 0 })
    if ($before.Count -gt 0) {
        return ConvertTo-Finding WRONG "$ConfDir has another network that containerd takes first: $($before -join ', ')" 'remove it'
    }
    if ($others.Count -gt 0) {
        return ConvertTo-Finding note "$ConfDir has another network, which containerd takes whenever ours is not there: $($others -join ', ')"
    }
    ConvertTo-Finding ok "$ConfDir has no other network"
}

function Test-WireGuardLibrary {
    param([string] $Folder)
    $folders = @(@($Folder, $system32) | Where-Object { $_ })
    $found = @(foreach ($file in 'wireguard.dll', 'wintun.dll') {
            $folders | ForEach-Object { Join-Path $_ $file } | Where-Object { Test-Path -LiteralPath $_ } | Select-Object -First 1
        })
    foreach ($path in $found) {
        $signature = Get-AuthenticodeSignature -LiteralPath $path
        if ("$($signature.Status)" -eq 'Valid') {
            ConvertTo-Finding ok "$path is there, signed by $($signature.SignerCertificate.Subject)"
        } else {
            ConvertTo-Finding WRONG "the signature of $path is $($signature.Status)" 'take it from https://download.wireguard.com/wireguard-nt/ or https://www.wintun.net/'
        }
    }
    if ($found.Count -gt 0) {
        return
    }
    $text = "neither wireguard.dll nor wintun.dll is in $($folders -join ' or ')"
    if ($Folder) {
        return ConvertTo-Finding WRONG $text 'put wireguard.dll of https://download.wireguard.com/wireguard-nt/ beside overlayd.exe'
    }
    ConvertTo-Finding note "$text; the image has to hold one"
}

# Test-Port looks at the ports unless there is an overlayd, which holds the mutex.
function Test-Port {
    param([int] $WireGuard, [int] $Metrics)
    $mutex = $null
    if ([Threading.Mutex]::TryOpenExisting('Global\zlayer-overlayd', [ref] $mutex)) {
        $mutex.Dispose()
        return ConvertTo-Finding ok 'overlayd is running, so the ports are its own'
    }
    $udp = @(Get-NetUDPEndpoint -LocalPort $WireGuard -ErrorAction SilentlyContinue)
    if ($udp.Count -gt 0) {
        ConvertTo-Finding WRONG "UDP port $WireGuard is taken by process $($udp[0].OwningProcess)" 'end it, or set listenPort'
    } else {
        ConvertTo-Finding ok "UDP port $WireGuard is free"
    }
    $tcp = @(Get-NetTCPConnection -LocalPort $Metrics -State Listen -ErrorAction SilentlyContinue)
    if ($tcp.Count -gt 0) {
        ConvertTo-Finding WRONG "TCP port $Metrics is taken by process $($tcp[0].OwningProcess)" 'end it, or set metricsAddress'
    } else {
        ConvertTo-Finding ok "TCP port $Metrics is free"
    }
}

# Test-NamePort looks for who has a port on all addresses, the overlay's among them.
function Test-NamePort {
    param([int[]] $Port)
    $sockets = @(Get-NetUDPEndpoint -ErrorAction SilentlyContinue) + @(Get-NetTCPConnection -State Listen -ErrorAction SilentlyContinue)
    $taken = @($sockets | Where-Object { $_.LocalPort -in $Port -and $_.LocalAddress -in '0.0.0.0', '::' })
    foreach ($socket in $taken) {
        ConvertTo-Finding WRONG "port $($socket.LocalPort) of $($socket.LocalAddress) is taken by process $($socket.OwningProcess), the overlay's addresses among them" `
            'have it listen on its own addresses alone, or set dns.ports'
    }
    if ($taken.Count -eq 0 -and $Port) {
        ConvertTo-Finding ok "nobody has the ports $($Port -join ', ') on all addresses"
    }
}

# Test-ReservedPort looks for a reservation, such as WinNAT's, that keeps WireGuard
# from its port. One that an administrator has made, with a *, keeps others away.
function Test-ReservedPort {
    param([int] $Port)
    $reserve = "netsh interface ipv4 add excludedportrange protocol=udp startport=$Port numberofports=1"
    foreach ($line in netsh.exe interface ipv4 show excludedportrange protocol=udp) {
        if ($line -notmatch '^\s*(?<first>\d+)\s+(?<last>\d+)\s*(?<mine>\*?)\s*$' -or $Port -lt [int] $Matches['first'] -or $Port -gt [int] $Matches['last']) {
            continue
        }
        if ($Matches['mine']) {
            return ConvertTo-Finding ok "UDP port $Port is kept free of others"
        }
        return ConvertTo-Finding WRONG "UDP port $Port is reserved by Windows itself ($($Matches['first']) to $($Matches['last']))" "net stop winnat; $reserve; net start winnat"
    }
    ConvertTo-Finding note "UDP port $Port may be given to any program that asks for no certain one; to keep it: $reserve"
}

# Test-Nat looks at Windows' NATs, by which pods leave the cluster.
function Test-Nat {
    if ($null -eq (Get-Command -Name Get-NetNat -ErrorAction SilentlyContinue)) {
        return ConvertTo-Finding note 'this Windows has no NAT, so that pods reach nobody outside of the cluster who does not know their addresses'
    }
    $others = @(Get-NetNat | Where-Object { $_.Name -notlike 'zlayer-*' } | ForEach-Object { '{0} of {1}' -f $_.Name, $_.InternalIPInterfaceAddressPrefix })
    if ($others.Count -gt 0) {
        return ConvertTo-Finding note "there is another NAT, beside which Windows may make none for pods: $($others -join ', ')"
    }
    ConvertTo-Finding ok 'there is no NAT of others'
}

function Test-StateDir {
    param([string] $Folder)
    if (-not (Test-Path -LiteralPath $Folder)) {
        return ConvertTo-Finding ok "$Folder is not there yet; the daemon makes it for SYSTEM and administrators alone"
    }
    $owner = (Get-Acl -LiteralPath $Folder).GetOwner([Security.Principal.SecurityIdentifier]).Value
    if ($owner -in 'S-1-5-18', 'S-1-5-32-544') {
        return ConvertTo-Finding ok "$Folder belongs to SYSTEM or the administrators"
    }
    ConvertTo-Finding WRONG "$Folder belongs to $owner, and overlayd keeps no keys there" "remove it, or icacls $Folder /setowner *S-1-5-32-544 if you trust what is in it"
}

$checks = [ordered]@{
    'elevation'             = { Test-Elevation }
    'build of Windows'      = { Test-Build }
    'feature Containers'    = { Test-ContainersFeature }
    'Hyper-V'               = { Test-HyperV }
    'libraries of Windows'  = { Test-SystemLibrary }
    'Host Network Service'  = { Test-HostService hns 'which makes networks' 'enable the feature Containers, and start the node anew' }
    'Host Compute Service'  = { Test-HostService vmcompute 'which starts containers' 'enable the feature Containers, and start the node anew' }
    'Windows Firewall'      = { Test-HostService mpssvc 'which lets WireGuard in' 'repair Windows: it belongs to every installation' }
    'containerd'            = { Test-HostService containerd 'the container runtime' 'install containerd 1.7 or later, and containerd --register-service' }
    'containerd, version'   = { Test-ContainerdVersion (Get-Containerd) }
    'containerd, folders'   = { Test-ContainerdFolder (Get-Containerd) $CniBinDir $CniConfDir }
    'other networks'        = { Test-OtherNetwork $CniConfDir }
    "WireGuard's libraries" = { Test-WireGuardLibrary $ProgramDir }
    'ports'                 = { Test-Port $ListenPort $MetricsPort }
    'ports of names'        = { Test-NamePort $NamePorts }
    'reserved ports'        = { Test-ReservedPort $ListenPort }
    'NATs'                  = { Test-Nat }
    'state folder'          = { Test-StateDir $StateDir }
}
$wrong = 0
foreach ($name in $checks.Keys) {
    try {
        $findings = @(& $checks[$name])
    } catch {
        $findings = @(ConvertTo-Finding WRONG "$name could not be looked at: $_" 'see the message; not elevated?')
    }
    foreach ($finding in $findings) {
        $line = '{0,-5}  {1}' -f $finding.State, $finding.Text
        if ($finding.State -eq 'WRONG') {
            $wrong++
            $line = '{0}: {1}' -f $line, $finding.Remedy
        }
        Write-Output $line
    }
}
if ($wrong -gt 0) {
    Write-Output "$wrong of these are wrong"
    exit 1
}
exit 0
