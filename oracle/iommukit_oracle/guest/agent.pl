#!/bin/perl
# The guest's first and only program.  It reads commands from the console, a line each: words separated by tabs, with %XX for other
# bytes.  Each is answered by one line of JSON behind an @.  What the commands are for is decided by the host.
use strict;
use warnings;
use Errno;

my %CALLS = ( # mount, init_module, delete_module: their numbers differ
    'x86_64'  => [ 165, 175, 176 ],
    'aarch64' => [ 40,  105, 106 ],
    's390x'   => [ 21,  128, 129 ],
);
my $GROUPS  = '/sys/kernel/iommu_groups';
my $PCI     = '/sys/bus/pci/devices';
my $TRACING = '/sys/kernel/tracing';
my ( %owners, $messages );

# ---- JSON ------------------------------------------------------------------------------------------------------------

sub text {
    my ($value) = @_;
    $value =~ s/([\\"])/\\$1/g;
    $value =~ s/([^ -~])/sprintf '\\u%04x', ord $1/ge;
    return qq("$value");
}

sub json {
    my ($value) = @_;
    return 'null' if !defined $value;
    return '[' . join( ',', map { json($_) } @$value ) . ']' if ref $value eq 'ARRAY';
    return '{' . join( ',', map { text($_) . ':' . json( $value->{$_} ) } sort keys %$value ) . '}' if ref $value eq 'HASH';
    return text($value);
}

# ---- files -----------------------------------------------------------------------------------------------------------

# The name of the error that has just occurred, such as EPERM; of two names for one number, the one that Linux itself uses.
sub failure {
    for my $name ( grep { !/^(?:ENOTSUP|EWOULDBLOCK|EDEADLOCK)$/ } sort keys %! ) { return $name if $!{$name} }
    return 'E' . ( $! + 0 );
}

sub contents {
    my ($path) = @_;
    open( my $file, '<', $path ) or return;
    local $/;
    my $all = <$file>;
    return $all;
}

sub lines { return split /\n/, contents(@_) // '' }

# A number without its 0x; nothing where the file has gone.
sub digits { return join( '', lines(@_) ) =~ s/^0x//r }

sub entries {
    my ($path) = @_;
    opendir( my $folder, $path ) or return ();
    return sort grep { !/^\.\.?$/ } readdir $folder;
}

sub target {
    my ($path) = @_;
    my $link = readlink($path) // return '';
    return ( split m{/}, $link )[-1];
}

# Write bytes with one call; as user 65534 where there is a third argument.
sub put {
    my ( $path, $bytes, $unprivileged ) = @_;
    sysopen( my $file, $path, 1 ) or return failure();
    return defined syswrite( $file, $bytes ) ? 'ok' : failure() if !$unprivileged;
    pipe( my $in, my $out );
    my $child = fork;
    if ( !$child ) {
        $) = "65534 65534";
        $> = $< = 65534;
        syswrite( $out, defined syswrite( $file, $bytes ) ? 'ok' : failure() );
        kill 9, $$;
    }
    close $out;
    my $said = <$in>;
    waitpid( $child, 0 );
    return $said;
}

# ---- what is there ---------------------------------------------------------------------------------------------------

sub groups {
    return [
        map {
            my $group = "$GROUPS/$_";
            {
                id       => $_,
                type     => join( '', lines("$group/type") ),
                devices  => [ entries("$group/devices") ],
                reserved => [ lines("$group/reserved_regions") ],
            }
        } sort { $a <=> $b } entries($GROUPS)
    ];
}

sub functions {
    return [
        map {
            my $path = "$PCI/$_";
            {
                address   => $_,
                id        => join( ':', map { digits("$path/$_") } qw(vendor device) ),
                class     => digits("$path/class"),
                driver    => target("$path/driver"),
                group     => target("$path/iommu_group"),
                untrusted => join( '', lines("$path/untrusted") ),
                removable => join( '', lines("$path/removable") ),
            }
        } entries($PCI)
    ];
}

sub units {
    return [
        map {
            my $unit = "/sys/class/iommu/$_";
            my %registers;
            for my $folder (qw(intel-iommu amd-iommu)) {
                for my $name ( entries("$unit/$folder") ) { $registers{$name} = join( ' ', lines("$unit/$folder/$name") ) }
            }
            { name => $_, devices => [ entries("$unit/devices") ], registers => \%registers };
        } entries('/sys/class/iommu')
    ];
}

# The kernel's messages since the last call; those that were overwritten meanwhile are passed over (EPIPE).
sub messages {
    my @found;
    while (1) {
        my $got = sysread( $messages, my $record, 8192 );
        next if !defined $got && $!{EPIPE};
        last if !$got;
        my ( $head, $line ) = $record =~ /^([^;]*);(.*?)\n/s or next;
        $line =~ s/\\x([0-9a-f]{2})/chr hex $1/ge;
        push @found, $line;
    }
    return \@found;
}

# ---- VFIO (include/uapi/linux/vfio.h) --------------------------------------------------------------------------------

my ( $SET_IOMMU, $SET_CONTAINER ) = ( 0x3b66, 0x3b68 );

# A group goes into a container of its owner: the container and the groups in it stay open.
sub claim {
    my ( $group, $owner ) = @_;
    my $held = $owners{$owner} //= {};
    my $file;
    sysopen( $file, "/dev/vfio/$group", 2 ) or return 'open group: ' . failure();
    my $new = !$held->{container};
    if ($new) {
        sysopen( my $container, '/dev/vfio/vfio', 2 ) or return 'open container: ' . failure();
        $held->{container} = $container;
    }
    my $number = pack 'i', fileno $held->{container};
    if ( !ioctl( $file, $SET_CONTAINER, $number ) ) {
        my $error = failure();
        delete $owners{$owner} if $new;
        return $error;
    }
    if ( $new && !ioctl( $held->{container}, $SET_IOMMU, 1 ) ) { # type 1
        my $error = failure();
        close $file;
        delete $owners{$owner};
        return "set iommu: $error";
    }
    $held->{groups}{$group} = $file;
    return 'ok';
}

sub release {
    my ( $group, $owner ) = @_;
    my $held = $owners{$owner} // return 'EINVAL';
    my $file = delete $held->{groups}{$group} // return 'EINVAL';
    close $file;
    if ( !%{ $held->{groups} } ) { close $held->{container}; delete $owners{$owner} }
    return 'ok';
}

# ---- modules ---------------------------------------------------------------------------------------------------------

my ( $mount, $insert, $delete );

sub insert {
    my ($name) = @_;
    my $module = contents("/mods/$name.ko") // return 'ENOENT';
    my $parameters = '';
    return syscall( $insert, $module, length($module), $parameters ) == 0 || $!{EEXIST} ? 'ok' : failure();
}

sub withdraw {
    my ($name) = @_;
    return syscall( $delete, $name, 04000 ) == 0 ? 'ok' : failure();    # O_NONBLOCK
}

# ---- devices at work -------------------------------------------------------------------------------------------------

# What a driver has made of a function, in a folder such as block or net: below it, or below what is on its bus.
sub made {
    my ( $device, $kind ) = @_;
    for my $below ( '', map { "/$_" } entries("$PCI/$device") ) {
        my @found = entries("$PCI/$device$below/$kind");
        return $found[0] if @found;
    }
    return;
}

# Read a disk from its start, not from what is remembered of it.  A driver may take a while to find it.
sub disk {
    my ( $device, $bytes ) = @_;
    my $name;
    for ( 1 .. 100 ) {
        ($name) = grep { index( readlink("/sys/class/block/$_") // '', "/$device/" ) >= 0 } entries('/sys/class/block');
        last if defined $name;
        select( undef, undef, undef, 0.05 );
    }
    return 'no disk' if !defined $name;
    sysopen( my $file, "/dev/$name", 0 ) or return failure();
    ioctl( $file, 0x1261, 0 );    # BLKFLSBUF
    my ( $all, $part ) = ( 0, '' );
    while ( $all < $bytes ) {
        my $got = sysread( $file, $part, 65536 );
        return failure() if !defined $got;
        last if !$got;
        $all += $got;
    }
    return $all >= $bytes ? 'ok' : 'short';
}

# Send a question about an address to everybody, and see whether anything comes back.
sub network {
    my ( $device, $seconds ) = @_;
    my $name = made( $device, 'net' ) // return 'no network';
    socket( my $control, 2, 2, 0 ) or return failure();
    ioctl( $control, 0x8914, my $up = pack 'a16 s x14', $name, 0x1 ) or return failure(); # SIOCSIFFLAGS, IFF_UP
    my $index = join '', lines("/sys/class/net/$name/ifindex");
    my $mac = pack 'H*', join '', split /:/, join '', lines("/sys/class/net/$name/address");
    socket( my $wire, 17, 3, unpack( 'S', pack 'n', 3 ) ) or return failure();          # AF_PACKET, SOCK_RAW, all frames
    my $place = pack 'S S i S C C a8', 17, unpack( 'S', pack 'n', 3 ), $index, 0, 0, 0, '';
    bind( $wire, $place ) or return failure();
    my $question = "\xff" x 6 . $mac . pack( 'n n n C C n', 0x806, 1, 0x800, 6, 4, 1 ) . $mac . pack( 'C4', 10, 0, 2, 15 )
        . "\0" x 6 . pack( 'C4', 10, 0, 2, 2 ) . "\0" x 18;
    for ( 1 .. 4 * $seconds ) {
        send( $wire, $question, 0 );
        my $waiting = '';
        vec( $waiting, fileno($wire), 1 ) = 1;
        while ( select( my $ready = $waiting, undef, undef, 0.25 ) > 0 ) {
            recv( $wire, my $frame, 2048, 0 );
            return 'ok' if length $frame >= 42 && substr( $frame, 0, 6 ) eq $mac && substr( $frame, 12, 2 ) eq "\x08\x06";
        }
    }
    return 'silent';
}

# ---- access control (PCIe 7.7.11) -------------------------------------------------------------------------------------

# Set the control register of a function: changed, same, or why not.
sub acs {
    my ( $device, $bits ) = @_;
    sysopen( my $file, "$PCI/$device/config", 2 ) or return failure();
    my ( $at, $bytes ) = ( 0x100, '' );
    while ( $at >= 0x100 ) {
        sysseek( $file, $at, 0 );
        last if ( sysread( $file, $bytes, 8 ) // 0 ) < 8;
        my ( $head, $able, $control ) = unpack 'V v v', $bytes;
        if ( ( $head & 0xffff ) == 0x0d ) {
            return 'same' if $control == $bits;
            sysseek( $file, $at + 6, 0 );
            return syswrite( $file, pack 'v', $bits ) ? 'changed' : failure();
        }
        $at = $head >> 20;
    }
    return 'none';
}

# ---- commands --------------------------------------------------------------------------------------------------------

my %COMMANDS = (
    hello => sub {
        return { release => join( ' ', lines('/proc/version') ), cmdline => join( ' ', lines('/proc/cmdline') ), units => units() };
    },
    state   => sub { return { groups => groups(), functions => functions() } },
    log     => sub { return messages() },
    insert  => sub { return { map { $_ => insert($_) } @_ } },
    withdraw => sub { return { map { $_ => withdraw($_) } @_ } },
    acs     => sub { return acs(@_) },
    write   => sub { return put(@_) },
    read    => sub { my $all = contents(@_); return defined $all ? [ split /\n/, $all ] : failure() },
    list    => sub { return [ entries(@_) ] },
    claim   => sub { return claim(@_) },
    release => sub { return release(@_) },
    disk    => sub { return disk(@_) },
    network => sub { return network(@_) },
);

my ($machine) = grep { -e "/machine/$_" } keys %CALLS;
( $mount, $insert, $delete ) = @{ $CALLS{$machine} };
for my $each ( [ 'proc', '/proc' ], [ 'sysfs', '/sys' ], [ 'devtmpfs', '/dev' ], [ 'tracefs', $TRACING ] ) {
    my ( $kind, $place ) = @$each;
    syscall( $mount, $kind, $place, $kind, 0, 0 );
}
open( STDIN, '<', '/dev/console' );
open( STDOUT, '>', '/dev/console' );
$| = 1;
if ( ioctl( STDIN, 0x5401, my $terminal = "\0" x 60 ) ) {    # TCGETS: no echo, no added carriage returns, lines of any length
    my @flags = unpack 'I4', $terminal;
    $flags[0] &= ~0500;                                      # ICRNL, IGNCR stay off
    $flags[1] &= ~1;
    $flags[3] &= ~012;                                       # ECHO, ICANON: a line would end at 4096 characters
    substr( $terminal, 0,  16 ) = pack 'I4', @flags;
    substr( $terminal, 22, 2 )  = "\0\1";                    # VTIME, VMIN: what is there is read at once
    ioctl( STDIN, 0x5402, $terminal );
}
put( '/proc/sys/kernel/printk', '1' );
sysopen( $messages, '/dev/kmsg', 04000 );                    # O_NONBLOCK
print "@", json( { ready => $machine } ), "\n";
while ( my $line = <STDIN> ) {
    chomp $line;
    my ( $name, @words ) = map { s/%([0-9a-f]{2})/chr hex $1/ger } split /\t/, $line, -1;
    next if !defined $name || $name eq '';
    my $command = $COMMANDS{$name};
    print "@", json( $command ? { answer => $command->(@words) } : { unknown => $name } ), "\n";
}
