"""The rules that this suite holds a driver against, by number: ``DRV`` is the driver's contract, ``INV`` what always holds.

``hardware_rules.py`` has the families that are tried on hardware: ``PT``, ``TLB``, ``FAULT``, ``ATTACH``.  A scenario names
rules of its own families.
"""

from __future__ import annotations

from iommukit_conformance.hardware_rules import HARDWARE
from iommukit_conformance.rule import Rule

RULES: dict[str, Rule] = {
    # ---- declaration and behaviour as a whole
    "DRV-01": Rule(
        "A vendor declares what exists, each in its form: architectures as a tuple (of x86_64, aarch64, s390x, riscv64),"
        " capabilities as a set, hardware options and expected failures as mappings to a text.",
        "A misspelt capability silently turns cases off.",
    ),
    "DRV-02": Rule(
        "A hook raises only the errors that its documentation names.",
        "The core handles errnos; anything else is a crash of the kernel.",
    ),
    "DRV-03": Rule(
        "A declared capability holds in at least one modelled release.",
        "Cases are chosen by capability; one that does not hold makes them fail for a wrong reason.",
    ),
    "DRV-04": Rule(
        "What a vendor offers, it declares.",
        "Undeclared, it is never tested.",
    ),
    "DRV-05": Rule(
        "A boot leaves no trace in the next one: the same machine gives the same log, groups and types.",
        "State kept beside the system belongs to a machine that is gone.",
    ),
    "DRV-06": Rule(
        "An ordinary machine boots: it has units with names of their own, and its device a group.",
        "Everything else is built on it.",
    ),
    "DRV-07": Rule(
        "A hook that lists things answers a sequence of them: Units, KernelOptions, firmware formats; an option's apply takes the"
        " value and the boot state, and yields OptionReports.",
        "The core goes through what it is given, and falls over anything else.",
    ),
    # ---- units and devices
    "DRV-10": Rule(
        "probe_device answers a unit that discover returned, or none.",
        "Another unit is one that the core has never registered.",
    ),
    "DRV-11": Rule(
        "Where the command line says iommu=off, no unit is found.",
        "The user has switched the IOMMU off.",
    ),
    "DRV-13": Rule(
        "A device that is removed and added again is treated as the first time.",
        "What a driver remembers of a device that has left is wrong for the next one in the slot.",
    ),
    "DRV-14": Rule(
        "On a machine that was not started by a crashed kernel, no attachment is deferred.",
        "A deferred device has no domain: its DMA fails until its driver maps, or passes untranslated.",
    ),
    "DRV-15": Rule(
        "A driver changes nothing that is the core's: trust, groups, units, bound drivers, the system's default.",
        "A driver that clears untrusted takes the protection away from an external port.",
    ),
    "DRV-16": Rule(
        "Before 6.12 the driver sets up the DMA API in probe_finalize.",
        "Otherwise mapping calls bypass the domain that translates the device, and its DMA faults.",
    ),
    "DRV-17": Rule(
        "A hook that is asked yes or no answers True or False.",
        "A text or a number is taken for yes.",
    ),
    "DRV-18": Rule(
        "Hooks of page tables answer bytes, iova_to_phys as many 64-bit addresses as it was asked about, take_faults Faults.",
        "The core goes on counting with what it is answered.",
    ),
    # ---- policy
    "DRV-20": Rule(
        "def_domain_type answers a DmaApiPolicy.",
        "A domain type in its place is read as another policy: no opinion becomes identity.",
    ),
    "DRV-21": Rule(
        "What a device requires changes neither from call to call nor with the order of devices.",
        "The core asks at boot, at hotplug and at each write, and must hear the same.",
    ),
    "DRV-22": Rule(
        "An ordinary device requires nothing; only a vendor that declares lazy-preferred may wish for a queue.",
        "A requirement outranks the command line and root; a preference in its place takes both away.",
    ),
    "DRV-23": Rule(
        "The example for a role answers as the role says.",
        "Cases that ask for a role test something else otherwise.",
    ),
    "DRV-24": Rule(
        "An untrusted device never requires identity.",
        "Anybody can plug in a device with the ids of a quirk.",
    ),
    # ---- domains
    "DRV-30": Rule(
        "domain_alloc answers a domain of the type that it was asked for.",
        "The core believes a translated group to be translated.",
    ),
    "DRV-31": Rule(
        "Each allocation is a domain of its own, unless it says that it is static.",
        "Two groups in one domain reach each other's memory, and the first to leave frees it.",
    ),
    "DRV-32": Rule(
        "A type that a driver lacks is refused by None or an errno, each time, and nothing has changed.",
        "The core falls back after a refusal; what was changed meanwhile stays.",
    ),
    "DRV-33": Rule(
        "Every device can be translated.",
        "An IOMMU without a paging domain protects nothing.",
    ),
    "DRV-34": Rule(
        "An attached domain that translates has an aperture and page sizes to map with.",
        "Nothing can be mapped otherwise.",
    ),
    "DRV-35": Rule(
        "An attachment that succeeds puts the device into that domain.",
        "The core takes the device for moved, and frees the domain that it is still in.",
    ),
    "DRV-36": Rule(
        "An attachment that is refused leaves the device in the domain that it was in.",
        "The core frees the domain that was refused.",
    ),
    "DRV-37": Rule(
        "A device that was blocked at once is in no domain.",
        "A device that has left still reaches memory otherwise.",
    ),
    "DRV-38": Rule(
        "A domain that was given back is in use nowhere.",
        "Its page tables are somebody else's memory by now.",
    ),
    "DRV-39": Rule(
        "After boot and each step, every device of a group is in the group's domain.",
        "A device elsewhere has other rights than its group shows.",
    ),
    # ---- flush queues
    "DRV-40": Rule(
        "A flush queue's size is a power of two, and its timeout is longer than nothing.",
        "The ring's index is masked; a queue without a timeout never gives memory back.",
    ),
    "DRV-41": Rule(
        "A flush queue is offered where it works and nowhere else; before 6.12 lazy domains are allocated by the same rule.",
        "An unmap that was not flushed leaves a device with access to freed memory.",
    ),
    "DRV-42": Rule(
        "Since 6.12 the capability deferred_flush and prefer_dma_api_fq say the same.",
        "Kernels ask either; page tables of the generic library need neither.",
    ),
    # ---- reserved regions
    "DRV-50": Rule(
        "A reserved region starts before it ends, lies in the address space and has a type.",
        "The core maps what it is told.",
    ),
    "DRV-51": Rule(
        "Every region that firmware reserves for a device is reported, with its type.",
        "A region that is missing is unmapped when translation starts, while firmware still uses it.",
    ),
    "DRV-52": Rule(
        "A direct region is mapped 1:1 in every domain for the DMA API that its device is put into at boot.",
        "Firmware's DMA faults otherwise.",
    ),
    "DRV-53": Rule(
        "A device's regions do not change from call to call.",
        "The core asks again for each domain.",
    ),
    "DRV-54": Rule(
        "A region in the machine file is reported in some release, or the machine is not applicable.",
        "A machine file must not be ignored silently.",
    ),
    # ---- groups
    "DRV-60": Rule(
        "device_group answers a group of this system.",
        "Another group has no number and no files.",
    ),
    "DRV-61": Rule(
        "Functions that nothing keeps apart share a group.",
        "Given to different owners they reach each other's memory behind the IOMMU's back.",
    ),
    "DRV-62": Rule(
        "Functions that the hardware keeps apart are in groups of their own.",
        "Otherwise neither can be assigned without the other.",
    ),
    # ---- options
    "DRV-70": Rule(
        "Every use of an option is reported with what became of it; a word that no option knows is not effective.",
        "People believe in options that do nothing.",
    ),
    "DRV-71": Rule(
        "The vendor's own option for strict mode only adds strictness, wherever it stands.",
        "iommu.strict=0 must not undo it, before or after.",
    ),
    # ---- firmware
    "DRV-80": Rule(
        "A firmware table that is read and written again is the same, byte for byte.",
        "What is lost in between cannot be modelled.",
    ),
    "DRV-81": Rule(
        "A damaged table is refused with the table's name and the place.",
        "A crash on bad firmware blames nobody, and a silent acceptance maps the wrong memory.",
    ),
    # ---- what always holds (facts about the engine that a driver can break)
    "INV-01": Rule(
        "An untrusted device is never in identity or lazy mode: not at boot, not when it joins, not by a write.",
        "It is the one that protection is for.",
    ),
    "INV-02": Rule(
        "Where the system is strict, no group boots lazy.",
        "iommu.strict=1 is a promise.",
    ),
    "INV-03": Rule(
        "A write that fails changes neither type, nor attachment, nor the domain.",
        "Root was told that nothing happened.",
    ),
    "INV-04": Rule(
        "Writing the type that a group has changes nothing.",
        "A rebuilt domain drops what is mapped.",
    ),
    "INV-05": Rule(
        "A group's default domain is one that the driver allocated, of that type; only the core makes a strict one lazy.",
        "The type in sysfs is what the hardware does.",
    ),
    "INV-06": Rule(
        "Every direct region is mapped 1:1 whenever its device is in a domain for the DMA API, without a gap across a change.",
        "Firmware's DMA does not wait.",
    ),
    "INV-07": Rule(
        "auto gives the type that the same devices had after boot.",
        "Root's choice can be taken back.",
    ),
    "INV-08": Rule(
        "The decision at boot does not depend on the order of devices.",
        "Which slot a card is in is no policy.",
    ),
    "INV-09": Rule(
        "The word in the log is the policy.",
        "It is what people read.",
    ),
    "INV-10": Rule(
        "A group with a device that has no flush queue is never DMA-FQ.",
        "An unmap that was not flushed leaves a device with access to freed memory.",
    ),
    # ---- on hardware
    **HARDWARE,
    # ---- the suite itself
    "SUITE-1": Rule(
        "The suite can tell right from wrong: kernels and scenarios load, the reference passes, wrong drivers fail.",
        "A broken harness must not be blamed on a driver.",
    ),
    "SUITE-2": Rule(
        "Each wrong driver is rejected by the rule that names its mistake.",
        "A rule that rejects nothing is no rule.",
    ),
}
