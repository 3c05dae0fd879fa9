"""Sense data in both formats."""

from __future__ import annotations

from target.scsi.sense import Asc, CheckCondition, SenseKey, invalid_field, invalid_parameter


def test_fixed_sense_is_18_bytes_with_key_and_code_in_place() -> None:
    sense = CheckCondition(SenseKey.NOT_READY, Asc.LOGICAL_UNIT_NOT_READY_MANUAL_INTERVENTION_REQUIRED).encode()
    assert sense == bytes.fromhex("700002000000000a000000000403" + "00" * 4)


def test_information_sets_valid() -> None:
    sense = CheckCondition(SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR, 0x1234).encode()
    assert (sense[0], sense[3:7]) == (0xF0, bytes.fromhex("00001234"))


def test_information_over_32_bits_is_told_in_descriptor_format_only() -> None:
    condition = CheckCondition(SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR, 1 << 33)
    assert condition.encode()[0] == 0x70
    assert condition.encode(descriptor=True)[8:] == bytes.fromhex("000a8000" + "0000000200000000")


def test_descriptor_sense_says_how_long_its_descriptors_are() -> None:
    sense = CheckCondition(SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE).encode(descriptor=True)
    assert sense == bytes.fromhex("7205210000000000")


def test_a_field_pointer_names_byte_and_bit_of_the_cdb() -> None:
    assert invalid_field(1, 3).encode()[15:18] == bytes((0x80 | 0x40 | 0x08 | 3, 0, 1))


def test_a_field_pointer_into_the_parameter_list_has_no_cd_bit() -> None:
    assert invalid_parameter(300).encode()[15:18] == bytes((0x80, 1, 44))


def test_descriptor_format_carries_the_field_pointer() -> None:
    assert invalid_field(2).encode(descriptor=True)[7:] == bytes.fromhex("08" "02060000" "c00002" "00")
