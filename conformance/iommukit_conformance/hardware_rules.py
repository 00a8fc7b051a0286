"""The rules that are tried on hardware, whether a model or QEMU.

``PT`` is page tables, ``TLB`` invalidation, ``FAULT`` what the hardware tells, ``ATTACH`` which tables a device uses.
*Reaches* means that a device's DMA arrives: the bytes that it reads are the page's, or the page holds what it wrote.
"""

from __future__ import annotations

from iommukit_conformance.rule import Rule

HARDWARE: dict[str, Rule] = {
    # ---- page tables
    "PT-01": Rule(
        "After any sequence of maps and unmaps a device reaches what an abstract map of pages says, and nothing else.",
        "This is what an IOMMU is for.",
    ),
    "PT-02": Rule(
        "iova_to_phys answers what the hardware reaches, to the byte, and UNMAPPED where nothing is mapped.",
        "The DMA API copies bounced data by it, and VFIO unpins pages by it.",
    ),
    "PT-03": Rule(
        "map_pages maps pgcount pages, not one more or fewer, and answers their bytes.",
        "One page too many is somebody else's memory.",
    ),
    "PT-04": Rule(
        "unmap_pages takes away pgcount pages from the address on, or up to the first hole, and answers their bytes.",
        "What stays behind is reached by a device that should no longer reach it.",
    ),
    "PT-05": Rule(
        "A page of each size of the domain can be mapped, is reached from its first byte to its last, and can be unmapped.",
        "The core chooses among all sizes that a domain names.",
    ),
    "PT-06": Rule(
        "Pages of different sizes, and ranges across the borders of tables, lie side by side without a gap.",
        "Buffers are as long and as aligned as they happen to be.",
    ),
    "PT-07": Rule(
        "Unmapping a part of a larger page splits it, takes it whole or does nothing, and what it answers is what is gone.",
        "The caller frees what it was told is gone, and no more.",
    ),
    "PT-08": Rule(
        "Unmapping leaves the neighbours on both sides mapped, and so does what is left of a page that was split.",
        "A hole in a neighbour stops a device that has done nothing wrong.",
    ),
    "PT-09": Rule(
        "Mapping over a mapping is refused with EEXIST, and nothing has changed then, at the overlap or beside it.",
        "Two owners of one address would corrupt each other's memory.",
    ),
    "PT-10": Rule(
        "A mapping with READ alone, of any page size, is read and not written.",
        "A buffer that a device is to send must not be written by it.",
    ),
    "PT-11": Rule(
        "A mapping with WRITE alone, of any page size, is written; where the vendor has write-only tables it is not read.",
        "A buffer for receiving may hold an earlier owner's secrets.",
    ),
    "PT-12": Rule(
        "A mapping with READ and WRITE, of any page size, is both read and written.",
        "Rings are used in both directions.",
    ),
    "PT-13": Rule(
        "The first and the last page of the aperture can be mapped and are reached.",
        "The allocator hands out addresses from the top down.",
    ),
    "PT-14": Rule(
        "A page beyond the aperture is refused with an errno, and nothing has changed then: no bits are lost.",
        "An address that is cut short is another buffer's.",
    ),
    "PT-15": Rule(
        "Once everything is unmapped and the domain is given back, the memory of its tables is given back, all of it.",
        "Leaked tables add up over a server's life.",
    ),
    "PT-16": Rule(
        "Mapping and unmapping the same range over and over needs no more memory the tenth time than the second.",
        "That is what a network driver does all day.",
    ),
    "PT-17": Rule(
        "A map that finds no memory for a table is refused with ENOMEM; translations and the memory in use are as before.",
        "The caller takes the range for unused and gives it to the next.",
    ),
    "PT-18": Rule(
        "Nothing is mapped in a new domain, whatever was in the memory that its tables are made of.",
        "Memory comes back from earlier users, with their contents.",
    ),
    "PT-19": Rule(
        "Physical addresses up to the end of memory, beyond 4 GiB too, are reached with all their bits.",
        "A shifted or masked address is another page.",
    ),
    # ---- invalidation
    "TLB-01": Rule(
        "After a page was unmapped and iotlb_sync has returned, no DMA reaches it.",
        "The page is somebody else's by now.",
    ),
    "TLB-02": Rule(
        "After a range of pages was unmapped and iotlb_sync has returned, no DMA reaches any of them, first to last.",
        "Invalidating half of it, or one page of it, looks fine until the other half is used.",
    ),
    "TLB-03": Rule(
        "The same holds for ranges that are no power of two long and not aligned to their length.",
        "Commands that take address masks or scales invalidate aligned powers of two.",
    ),
    "TLB-04": Rule(
        "The same holds for every byte of larger pages.",
        "A command for the first granule need not reach the rest.",
    ),
    "TLB-05": Rule(
        "The same holds for ranges across the borders of tables, with tables that go as well.",
        "Cached upper entries lead to tables that are gone.",
    ),
    "TLB-06": Rule(
        "The same holds for several unmaps, near and far apart, that one iotlb_sync ends.",
        "The gathered range may have to be cut in two.",
    ),
    "TLB-07": Rule(
        "Unmapping and invalidating a range leaves all other mappings of the domain working, before the sync and after.",
        "Other buffers are in use meanwhile.",
    ),
    "TLB-08": Rule(
        "An address that was unmapped, synced and mapped to another page reaches the new page at once, and not the old one.",
        "Addresses are used again within microseconds.",
    ),
    "TLB-09": Rule(
        "After flush_iotlb_all no DMA reaches anything that was unmapped in the domain before.",
        "A flush queue frees addresses and tables on its word.",
    ),
    "TLB-10": Rule(
        "Invalidating one domain leaves other domains translating as they did; what each unmaps is gone by its own sync.",
        "One device's unmap is no business of another's.",
    ),
    "TLB-11": Rule(
        "Between unmap_pages and iotlb_sync no table is given back: it is in gather.freed, or still in use.",
        "Hardware may still be walking it, and would read the next owner's data as entries.",
    ),
    "TLB-12": Rule(
        "iotlb_sync gives back the tables in gather.freed and empties the list.",
        "Nobody else does.",
    ),
    "TLB-13": Rule(
        "A mapping works once iotlb_sync_map has returned, also where the device has faulted on the address before.",
        "Some hardware caches that nothing was there; some hypervisors have to be told of each new entry.",
    ),
    "TLB-14": Rule(
        "A page that is unmapped, synced and mapped again with fewer rights is no longer accessed with the old ones.",
        "Rights are cached with the address.",
    ),
    "TLB-15": Rule(
        "A page that is unmapped, synced and mapped again with more rights can be accessed with them at once.",
        "Rights are cached with the address.",
    ),
    "TLB-16": Rule(
        "An invalidation reaches every device of the domain.",
        "Caches are kept for each device or unit, or tagged by more than the domain.",
    ),
    "TLB-17": Rule(
        "A domain that takes the place of one given back, with its number or its tables' memory, reaches none of the old pages.",
        "Numbers are used again, and caches are tagged by them.",
    ),
    "TLB-18": Rule(
        "A larger page in the place of a table of small ones, and the other way round, works at once and alone.",
        "Entries of upper levels are cached as well.",
    ),
    "TLB-19": Rule(
        "The thousandth invalidation works like the first.",
        "Queues wrap around.",
    ),
    "TLB-20": Rule(
        "In a strict domain no DMA reaches a buffer once dma_unmap has returned.",
        "This is what strict means.",
    ),
    "TLB-21": Rule(
        "In a lazy domain an address is used again, and a table given back, only when no DMA there reaches the old buffer.",
        "A device may write a little longer, but never into the next buffer's place.",
    ),
    # ---- faults
    "FAULT-01": Rule(
        "A read of an unmapped address is told with requester, page, direction and the kind NOT_MAPPED.",
        "People find the broken driver by it.",
    ),
    "FAULT-02": Rule(
        "A write to an unmapped address is told with requester, page, direction and the kind NOT_MAPPED.",
        "People find the broken driver by it.",
    ),
    "FAULT-03": Rule(
        "A write to a page that may only be read is told with requester, page, direction and the kind PERMISSION.",
        "It is another mistake than an unmapped address.",
    ),
    "FAULT-04": Rule(
        "A request of a blocked device is told with its requester, unless the architecture drops it silently.",
        "A device that is still running after it was taken away should be noticed.",
    ),
    "FAULT-05": Rule(
        "A request beyond the aperture reaches nothing, and if it is told, then with the requester and the address.",
        "An address that is cut short would hit another page.",
    ),
    "FAULT-06": Rule(
        "After a fault the device's other DMA, and that of other devices, goes on working.",
        "One bad descriptor must not stop a machine.",
    ),
    "FAULT-07": Rule(
        "A fault is told once.",
        "A log that repeats itself is not read.",
    ),
    "FAULT-08": Rule(
        "After more faults than there is room for, DMA still works and a later fault is told.",
        "A flood must neither stop the unit nor hide what comes after it.",
    ),
    "FAULT-09": Rule(
        "DMA that is let through is no fault.",
        "False alarms make people switch the IOMMU off.",
    ),
    "FAULT-10": Rule(
        "Faults of two devices are each told under the right name, the oldest first.",
        "The innocent one is taken out of service otherwise.",
    ),
    # ---- attachment
    "ATTACH-01": Rule(
        "A device in a blocked domain reaches nothing.",
        "A group that is claimed is blocked until its owner has set it up.",
    ),
    "ATTACH-02": Rule(
        "A device that was never attached reaches nothing.",
        "It would reach all memory otherwise.",
    ),
    "ATTACH-03": Rule(
        "A device that was released reaches nothing.",
        "Nobody watches it any more.",
    ),
    "ATTACH-04": Rule(
        "A device in an unmanaged domain reaches only what is mapped there, and in an empty one nothing.",
        "An assigned device sees its guest's memory and nothing else.",
    ),
    "ATTACH-05": Rule(
        "A device in an identity domain reaches memory as it is.",
        "Nothing maps for it.",
    ),
    "ATTACH-06": Rule(
        "When attach_dev has returned the device uses the new domain, and no DMA of it reaches a page of the old one.",
        "The old domain is freed next.",
    ),
    "ATTACH-07": Rule(
        "Devices in different domains never reach what only the other's domain maps, at equal addresses either.",
        "Domains share numbers, caches and tables only by mistake.",
    ),
    "ATTACH-08": Rule(
        "Devices in one domain reach the same, whichever was attached first, and also what is mapped afterwards.",
        "A group's devices work on common buffers.",
    ),
    "ATTACH-09": Rule(
        "Moving one device leaves the DMA of another as it is.",
        "It has not been asked to stop.",
    ),
    "ATTACH-10": Rule(
        "While a group's type is switched between translated types, at no return of a hook is a direct region out of reach.",
        "Firmware's DMA does not wait.",
    ),
    "ATTACH-11": Rule(
        "The same holds at each register write, as far as the platform can look.",
        "Between two writes hardware goes on.",
    ),
    "ATTACH-12": Rule(
        "An attachment that is refused changes nothing for the device's DMA.",
        "It goes on in the domain that it was in.",
    ),
    "ATTACH-13": Rule(
        "An allocation or attachment that finds no memory is refused with ENOMEM; translations and memory in use are as before.",
        "The system goes on with what it had.",
    ),
    "ATTACH-14": Rule(
        "When set_dev_blocked has answered True the device reaches nothing.",
        "It is leaving, and its last domain is freed next.",
    ),
    "ATTACH-15": Rule(
        "A device that leaves and comes back over and over needs no more memory the tenth time than the second.",
        "Hotplug must not eat a machine.",
    ),
    "ATTACH-16": Rule(
        "A driver reaches what it has mapped with the DMA API, whatever the group's type.",
        "Policy and page tables have to agree.",
    ),
    "ATTACH-17": Rule(
        "However many domains were allocated and given back, the next is to be had, and no memory is kept.",
        "Domains have numbers in hardware, 65536 or fewer.",
    ),
}
